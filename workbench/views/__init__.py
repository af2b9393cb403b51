"""The views: a dataset in, a figure or widget out. One file a view, one line here."""

from workbench.views._base import VIEWS, Drawing, View, ViewError, compatible, link, show
from workbench.views.ablation_matrix import ablation_matrix
from workbench.views.attention_pattern import attention_pattern
from workbench.views.attention_row import attention_row
from workbench.views.before_after import before_after
from workbench.views.change_list import change_list
from workbench.views.circuit_changes import circuit_changes
from workbench.views.circuit_graph import circuit_graph
from workbench.views.coactivation import coactivation
from workbench.views.dormancy import dormancy
from workbench.views.dormancy_heads import dormancy_heads
from workbench.views.emergence import emergence
from workbench.views.exact_scatter import exact_scatter
from workbench.views.expert_alignment import expert_alignment
from workbench.views.expert_drift import expert_drift
from workbench.views.expert_effects import expert_effects
from workbench.views.expert_energy import expert_energy
from workbench.views.expert_load import expert_load
from workbench.views.expert_strip import expert_strip
from workbench.views.faithfulness_curve import faithfulness_curve
from workbench.views.first_tokens import first_tokens
from workbench.views.flip_table import flip_table
from workbench.views.gradient_heads import gradient_heads
from workbench.views.gradient_layers import gradient_layers
from workbench.views.gradient_matrix import gradient_matrix
from workbench.views.gradient_parts import gradient_parts
from workbench.views.gradient_training import gradient_training
from workbench.views.head_map import head_map
from workbench.views.massive_map import massive_map
from workbench.views.mixture_map import mixture_map
from workbench.views.norm_lifetime import norm_lifetime
from workbench.views.overlap_curve import overlap_curve
from workbench.views.overlap_matrix import overlap_matrix
from workbench.views.paired_differences import paired_differences
from workbench.views.parked_heads import parked_heads
from workbench.views.repair_plot import repair_plot
from workbench.views.role_maps import role_maps
from workbench.views.role_table import role_table
from workbench.views.route_changes import route_changes
from workbench.views.routing_drift import routing_drift
from workbench.views.saliency_shares import saliency_shares
from workbench.views.sink_before_after import sink_before_after
from workbench.views.sink_directions import sink_directions_plot
from workbench.views.sink_effects import sink_effects
from workbench.views.sink_emergence import sink_emergence
from workbench.views.sink_heads import sink_heads
from workbench.views.sink_kinds import sink_kinds
from workbench.views.sink_levels import sink_levels
from workbench.views.sink_map import sink_map
from workbench.views.sink_norms import sink_norms
from workbench.views.sink_rate import sink_rate
from workbench.views.specialisation import specialisation
from workbench.views.stage_alignment import stage_alignment
from workbench.views.state_map import state_map
from workbench.views.surgery_effects import surgery_effects
from workbench.views.task_flow import task_flow
from workbench.views.task_similarity import task_similarity
from workbench.views.token_map import token_map
from workbench.views.token_selection import token_selection
from workbench.views.training_curves import training_curves
from workbench.views.truncation_curve import truncation_curve

__all__ = [
    "VIEWS",
    "Drawing",
    "View",
    "ViewError",
    "ablation_matrix",
    "attention_pattern",
    "attention_row",
    "before_after",
    "change_list",
    "circuit_changes",
    "circuit_graph",
    "coactivation",
    "compatible",
    "dormancy",
    "dormancy_heads",
    "emergence",
    "exact_scatter",
    "expert_alignment",
    "expert_drift",
    "expert_effects",
    "expert_energy",
    "expert_load",
    "expert_strip",
    "faithfulness_curve",
    "first_tokens",
    "flip_table",
    "gradient_heads",
    "gradient_layers",
    "gradient_matrix",
    "gradient_parts",
    "gradient_training",
    "head_map",
    "link",
    "massive_map",
    "mixture_map",
    "norm_lifetime",
    "overlap_curve",
    "overlap_matrix",
    "paired_differences",
    "parked_heads",
    "repair_plot",
    "role_maps",
    "role_table",
    "route_changes",
    "routing_drift",
    "saliency_shares",
    "show",
    "sink_before_after",
    "sink_directions_plot",
    "sink_effects",
    "sink_emergence",
    "sink_heads",
    "sink_kinds",
    "sink_levels",
    "sink_map",
    "sink_norms",
    "sink_rate",
    "specialisation",
    "stage_alignment",
    "state_map",
    "surgery_effects",
    "task_flow",
    "task_similarity",
    "token_map",
    "token_selection",
    "training_curves",
    "truncation_curve",
]
