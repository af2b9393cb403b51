"""Views of heads, tokens, tasks and fine-tunes as plain front-end modules for JupyterLab and other hosts."""

from widgets.attention_row import AttentionRow
from widgets.attention_view import AttentionView
from widgets.circuit_graph import CircuitGraph
from widgets.head_grid import HeadGrid
from widgets.task_matrix import TaskMatrix
from widgets.token_map import TokenMap
from widgets.training_curves import TrainingCurves

__all__ = ["AttentionRow", "AttentionView", "CircuitGraph", "HeadGrid", "TaskMatrix", "TokenMap", "TrainingCurves"]
