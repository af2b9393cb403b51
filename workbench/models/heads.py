"""Names of attention heads: written L9H9, understood as 9.9, a9.h9, A9.9 and (9, 9) too."""

import re

from workbench.registry import WorkbenchError

_FORMS = re.compile(r"\s*(?:[Ll](\d+)[Hh](\d+)|[Aa]?(\d+)\.[Hh]?(\d+))\s*")


def head_name(layer: int, head: int) -> str:
    """`L9H9` for layer 9, head 9."""
    return f"L{layer}H{head}"


def parse_head(text: str | tuple[int, int]) -> tuple[int, int]:
    """(layer, head) of a head's name in any of the usual forms."""
    if isinstance(text, tuple):
        return text
    found = _FORMS.fullmatch(text)
    if not found:
        raise WorkbenchError(f"'{text}' is not the name of a head; write it like L9H9.")
    layer, head = (int(part) for part in found.groups() if part is not None)
    return layer, head
