"""Where results and runs are kept, and writing a file wholly or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path


def home() -> Path:
    """`WORKBENCH_HOME`, or `~/.cache/workbench`."""
    return Path(os.environ.get("WORKBENCH_HOME") or "~/.cache/workbench").expanduser()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; after an error, or a kill at any moment, it is as it was before or as it should be.

    Raises:
        OSError: when it cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        if temporary:
            with contextlib.suppress(OSError):  # gone already when all went well
                os.unlink(temporary)
