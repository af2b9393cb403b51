"""Views of heads, tokens and fine-tunes for JupyterLab, plain front-end modules that other hosts can load as well."""

from widgets.attention_row import AttentionRow
from widgets.attention_view import AttentionView
from widgets.circuit_graph import CircuitGraph
from widgets.head_grid import HeadGrid
from widgets.token_map import TokenMap
from widgets.training_curves import TrainingCurves

__all__ = ["AttentionRow", "AttentionView", "CircuitGraph", "HeadGrid", "TokenMap", "TrainingCurves"]
