"""Names of experts: written L2E5, understood as 2.5, l2e5 and (2, 5) too."""

import re

from workbench.registry import WorkbenchError

_FORMS = re.compile(r"\s*(?:[Ll](\d+)[Ee](\d+)|(\d+)\.[Ee]?(\d+))\s*")


def expert_name(layer: int, expert: int) -> str:
    """`L2E5` for layer 2, expert 5."""
    return f"L{layer}E{expert}"


def parse_expert(text: str | tuple[int, int]) -> tuple[int, int]:
    """(layer, expert) of an expert's name in any of the usual forms."""
    if isinstance(text, tuple):
        return text
    found = _FORMS.fullmatch(text)
    if not found:
        raise WorkbenchError(f"'{text}' is not the name of an expert; write it like L2E5.")
    layer, expert = (int(part) for part in found.groups() if part is not None)
    return layer, expert
