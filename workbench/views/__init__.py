"""The views: a dataset in, a figure or widget out. One file a view, one line here."""

from workbench.views._base import VIEWS, Drawing, View, ViewError, compatible, link, show
from workbench.views.ablation_matrix import ablation_matrix
from workbench.views.attention_pattern import attention_pattern
from workbench.views.attention_row import attention_row
from workbench.views.circuit_graph import circuit_graph
from workbench.views.emergence import emergence
from workbench.views.exact_scatter import exact_scatter
from workbench.views.faithfulness_curve import faithfulness_curve
from workbench.views.head_map import head_map
from workbench.views.overlap_curve import overlap_curve
from workbench.views.overlap_matrix import overlap_matrix
from workbench.views.repair_plot import repair_plot
from workbench.views.role_maps import role_maps
from workbench.views.role_table import role_table
from workbench.views.sink_heads import sink_heads
from workbench.views.sink_map import sink_map
from workbench.views.sink_rate import sink_rate

__all__ = [
    "VIEWS",
    "Drawing",
    "View",
    "ViewError",
    "ablation_matrix",
    "attention_pattern",
    "attention_row",
    "circuit_graph",
    "compatible",
    "emergence",
    "exact_scatter",
    "faithfulness_curve",
    "head_map",
    "link",
    "overlap_curve",
    "overlap_matrix",
    "repair_plot",
    "role_maps",
    "role_table",
    "show",
    "sink_heads",
    "sink_map",
    "sink_rate",
]
