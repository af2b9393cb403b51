"""The Gradients page: tasks, layers, heads, training, saliency."""

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.further import FurtherTasks
from workbench.app.gradient_heads import GradientHeads
from workbench.app.gradient_layers import GradientLayers
from workbench.app.gradient_saliency import SaliencyPart
from workbench.app.gradient_tasks import GradientTasks
from workbench.app.gradient_training import GradientTraining
from workbench.app.parts import Theme
from workbench.app.runner import Runner
from workbench.app.tabs import Part, TabbedPage
from workbench.session import Session

PARTS: dict[str, Part] = {
    "Tasks": GradientTasks,
    "Layers": GradientLayers,
    "Heads": GradientHeads,
    "Training": GradientTraining,
    "Saliency": SaliencyPart,
}


class GradientsPage(TabbedPage):
    """One tab for each way to look at gradients; which tasks are compared is said once for all of them."""

    parts, number, tab = PARTS, 3, "gradient"

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, theme, **params)
        self._further = FurtherTasks(session)

    def __panel__(self) -> pn.viewable.Viewable:
        about = (
            "A task's gradient is the step that would lower its loss fastest. Where the gradients of two tasks point "
            "the same way they can learn together; where they oppose each other, what one learns the other loses. A "
            "gradient is known only as well as its prompts tell it: choose more prompts in the sidebar for less noise."
        )
        look = {"opacity": 0.75, "maxWidth": "75em"}
        return pn.Column(
            pmui.Typography(about, variant="body2", margin=(14, 0, 6, 0), sx=look),
            self._further,
            self._tabs,
            sizing_mode="stretch_width",
        )
