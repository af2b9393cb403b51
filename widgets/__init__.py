"""Views of heads, tokens and tasks for JupyterLab, plain front-end modules that other hosts can load as well."""

from widgets.attention_row import AttentionRow
from widgets.attention_view import AttentionView
from widgets.circuit_graph import CircuitGraph
from widgets.head_grid import HeadGrid
from widgets.task_matrix import TaskMatrix
from widgets.token_map import TokenMap

__all__ = ["AttentionRow", "AttentionView", "CircuitGraph", "HeadGrid", "TaskMatrix", "TokenMap"]
