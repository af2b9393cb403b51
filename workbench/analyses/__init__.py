"""The analyses: a model and a task in, a labelled dataset out. One file an analysis, one line here."""

from workbench.analyses._base import ANALYSES, Analysis, AnalysisError
from workbench.analyses.ablation import ablation
from workbench.analyses.attention import attention
from workbench.analyses.edge_attribution import edge_attribution
from workbench.analyses.faithfulness import faithfulness
from workbench.analyses.head_patching import head_patching
from workbench.analyses.head_roles import head_roles
from workbench.analyses.overlap import circuit_sets, overlap
from workbench.analyses.path_patching import path_patching
from workbench.analyses.repair import repair
from workbench.analyses.sink_scores import sink_scores

__all__ = [
    "ANALYSES",
    "Analysis",
    "AnalysisError",
    "ablation",
    "attention",
    "circuit_sets",
    "edge_attribution",
    "faithfulness",
    "head_patching",
    "head_roles",
    "overlap",
    "path_patching",
    "repair",
    "sink_scores",
]
