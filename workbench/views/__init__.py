"""The views: a dataset in, a figure or widget out. One file a view, one line here."""

from workbench.views import attention_pattern, head_map, overlap_curve, sink_heads, sink_map, sink_rate
from workbench.views._base import VIEWS, Drawing, View, ViewError, compatible, show

__all__ = [
    *("VIEWS", "Drawing", "View", "ViewError", "attention_pattern", "compatible", "head_map", "overlap_curve", "show"),
    *("sink_heads", "sink_map", "sink_rate"),
]
