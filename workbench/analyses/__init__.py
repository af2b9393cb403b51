"""The analyses: a model and a task in, a labelled dataset out. One file an analysis, one line here."""

from workbench.analyses._base import ANALYSES, Analysis, AnalysisError
from workbench.analyses.ablation import ablation
from workbench.analyses.attention import attention
from workbench.analyses.dormant_heads import dormant_heads
from workbench.analyses.edge_attribution import edge_attribution
from workbench.analyses.expert_ablation import expert_ablation
from workbench.analyses.expert_similarity import expert_similarity
from workbench.analyses.faithfulness import faithfulness
from workbench.analyses.head_patching import head_patching
from workbench.analyses.head_roles import head_roles
from workbench.analyses.massive_activations import massive_activations
from workbench.analyses.mean_attention import mean_attention
from workbench.analyses.overlap import circuit_sets, overlap
from workbench.analyses.path_patching import path_patching
from workbench.analyses.repair import repair
from workbench.analyses.route_surgery import route_surgery
from workbench.analyses.routing import routing
from workbench.analyses.routing_circuit import routing_circuit
from workbench.analyses.routing_drift import routing_drift
from workbench.analyses.secondary_sinks import secondary_sinks
from workbench.analyses.sink_ablation import sink_ablation
from workbench.analyses.sink_aware_patching import sink_aware_patching
from workbench.analyses.sink_directions import sink_directions
from workbench.analyses.sink_scores import sink_scores
from workbench.analyses.task_routing import task_routing

__all__ = [
    "ANALYSES",
    "Analysis",
    "AnalysisError",
    "ablation",
    "attention",
    "circuit_sets",
    "dormant_heads",
    "edge_attribution",
    "expert_ablation",
    "expert_similarity",
    "faithfulness",
    "head_patching",
    "head_roles",
    "massive_activations",
    "mean_attention",
    "overlap",
    "path_patching",
    "repair",
    "route_surgery",
    "routing",
    "routing_circuit",
    "routing_drift",
    "secondary_sinks",
    "sink_ablation",
    "sink_aware_patching",
    "sink_directions",
    "sink_scores",
    "task_routing",
]
