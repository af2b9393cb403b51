"""Views of attention heads for JupyterLab, plain front-end modules that other hosts can load as well."""

from widgets.attention_view import AttentionView
from widgets.head_grid import HeadGrid

__all__ = ["AttentionView", "HeadGrid"]
