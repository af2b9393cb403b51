"""The analyses: a model and a task in, a labelled dataset out. One file an analysis, one line here."""

from workbench.analyses._base import ANALYSES, Analysis, AnalysisError
from workbench.analyses._several import task_list
from workbench.analyses.ablation import ablation
from workbench.analyses.attention import attention
from workbench.analyses.compare import STATES, compare, top_changes
from workbench.analyses.dormant_heads import dormant_heads
from workbench.analyses.edge_attribution import edge_attribution
from workbench.analyses.embedding import embedding
from workbench.analyses.expert_ablation import expert_ablation
from workbench.analyses.expert_drift import expert_drift
from workbench.analyses.expert_similarity import expert_similarity
from workbench.analyses.expert_truncation import expert_truncation
from workbench.analyses.faithfulness import faithfulness
from workbench.analyses.flips import flips
from workbench.analyses.gradient_alignment import gradient_alignment
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
from workbench.analyses.task_saliency import task_saliency

__all__ = [
    "ANALYSES",
    "STATES",
    "Analysis",
    "AnalysisError",
    "ablation",
    "attention",
    "circuit_sets",
    "compare",
    "dormant_heads",
    "edge_attribution",
    "embedding",
    "expert_ablation",
    "expert_drift",
    "expert_similarity",
    "expert_truncation",
    "faithfulness",
    "flips",
    "gradient_alignment",
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
    "task_list",
    "task_routing",
    "task_saliency",
    "top_changes",
]
