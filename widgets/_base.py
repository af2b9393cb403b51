"""What all widgets share: a front end in pieces, setting traits together, and traits that carry arrays as bytes."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets as T

_HERE = Path(__file__).parent


def front_end(folder: Path, *names: str) -> str:
    """The JavaScript module of a widget: what all of them share, then the named files of its folder."""
    return _joined(_HERE / "shared.js", *(folder / name for name in names))


def style_sheet(folder: Path) -> str:
    """The style sheet of a widget: what all of them share, then its own."""
    return _joined(_HERE / "shared.css", folder / "widget.css")


def _joined(*paths: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def packed(help: str) -> T.Bytes:
    """A synced trait of bytes; a browser's binary message arrives as a memoryview, which the trait itself refuses."""
    return T.Bytes(b"", help=help).tag(sync=True, from_json=lambda value, _: bytes(value or b""))


class Widget(anywidget.AnyWidget):
    """A widget whose traits can be set together."""

    @classmethod
    def own_traits(cls) -> list[str]:
        """Names of the traits a person may set."""
        inherited = anywidget.AnyWidget.class_traits()
        return [name for name in cls.class_traits() if name not in inherited and not name.startswith("_")]

    def show(self, **traits: Any) -> None:
        """Set several traits as one change, checked and sent together.

        Raises:
            TypeError: for a trait there is not, naming those there are.
        """
        own = self.own_traits()
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in traits.items():
                if name not in own:
                    raise TypeError(f"{type(self).__name__} has no trait {name!r}; it has {', '.join(own)}")
                setattr(self, name, value)
