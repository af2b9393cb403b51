"""The views: a dataset in, a figure or widget out. One file a view, one line here."""

from workbench.views._base import VIEWS, Drawing, View, ViewError, compatible, show
from workbench.views.attention_pattern import attention_pattern
from workbench.views.head_map import head_map
from workbench.views.overlap_curve import overlap_curve
from workbench.views.sink_heads import sink_heads
from workbench.views.sink_map import sink_map
from workbench.views.sink_rate import sink_rate

__all__ = [
    "VIEWS",
    "Drawing",
    "View",
    "ViewError",
    "attention_pattern",
    "compatible",
    "head_map",
    "overlap_curve",
    "show",
    "sink_heads",
    "sink_map",
    "sink_rate",
]
