"""The Routing page: loads, tasks, experts together, specialisation, training, what experts do, surgery, map."""

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.parts import Theme
from workbench.app.routing_causal import ExpertsPart
from workbench.app.routing_load import LoadPart
from workbench.app.routing_map import MapPart
from workbench.app.routing_special import SpecialPart
from workbench.app.routing_surgery import SurgeryPart
from workbench.app.routing_tasks import TasksPart
from workbench.app.routing_together import TogetherPart
from workbench.app.routing_training import TrainingPart
from workbench.app.runner import Runner
from workbench.app.sinks import LENGTHS
from workbench.app.tabs import Part, TabbedPage
from workbench.session import Session

PARTS: dict[str, Part] = {
    "Load": LoadPart,
    "Tasks": TasksPart,
    "Together": TogetherPart,
    "Specialisation": SpecialPart,
    "Training": TrainingPart,
    "Causal": ExpertsPart,
    "Surgery": SurgeryPart,
    "Map": MapPart,
}


class RoutingPage(TabbedPage):
    """One tab for each way to look at a mixture of experts; how much text is read is said once for all of them."""

    parts, number, tab = PARTS, 2, "route"

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, theme, **params)
        self._length = pmui.Select.from_param(
            session.param.length,
            options=sorted({*LENGTHS, session.length}),
            label="Tokens a sequence",
            width=170,
            size="small",
            margin=(8, 0, 4, 0),
        )

    def __panel__(self) -> pn.viewable.Viewable:
        about = (
            "A mixture of experts has several MLPs in a layer, its experts, and a router that sends each token to a "
            "few of them. L2E5 is expert 5 of layer 2. A router of random weights tells tokens apart too, so each "
            "number stands beside what chance, or such a router, gives."
        )
        look = {"opacity": 0.75, "maxWidth": "75em"}
        return pn.Column(
            pmui.Typography(about, variant="body2", margin=(14, 0, 6, 0), sx=look),
            self._length,
            self._tabs,
            sizing_mode="stretch_width",
        )
