"""The analyses: a model and a task in, a labelled dataset out. One file an analysis, one line here."""

from workbench.analyses._base import ANALYSES, Analysis, AnalysisError
from workbench.analyses.attention import attention
from workbench.analyses.head_patching import head_patching
from workbench.analyses.overlap import overlap
from workbench.analyses.sink_scores import sink_scores

__all__ = ["ANALYSES", "Analysis", "AnalysisError", "attention", "head_patching", "overlap", "sink_scores"]
