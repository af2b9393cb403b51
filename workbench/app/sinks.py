"""The Sinks page: scores, secondary sinks, what sinks do, massive activations, dormant heads, reuse, the viewer."""

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.parts import Theme
from workbench.app.runner import Runner
from workbench.app.sink_causal import CausalPart
from workbench.app.sink_dormant import DormantPart
from workbench.app.sink_massive import MassivePart
from workbench.app.sink_reuse import SinkReusePart
from workbench.app.sink_scores import ScoresPart
from workbench.app.sink_secondary import SecondaryPart
from workbench.app.sink_viewer import ViewerPart
from workbench.app.tabs import Part, TabbedPage
from workbench.session import Session

PARTS: dict[str, Part] = {
    "Scores": ScoresPart,
    "Secondary": SecondaryPart,
    "Causal test": CausalPart,
    "Massive": MassivePart,
    "Dormant": DormantPart,
    "Reuse": SinkReusePart,
    "Viewer": ViewerPart,
}
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class SinksPage(TabbedPage):
    """One tab for each way to look at attention sinks; how much text is read is said once for all of them."""

    parts, number, tab = PARTS, 1, "sink"

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, theme, **params)
        options = sorted({*LENGTHS, session.length})
        self._length = pmui.Select.from_param(
            session.param.length,
            options=options,
            label="Tokens a sequence",
            width=170,
            size="small",
            margin=(8, 0, 4, 0),
        )

    def __panel__(self) -> pn.viewable.Viewable:
        about = (
            "A head that has nothing to say must still put its attention somewhere, for a softmax sums to 1. It parks "
            "it on one token, often the first: an attention sink. Sequences are running text of each task: its "
            "prompts with their answers, one after the other."
        )
        look = {"opacity": 0.75, "maxWidth": "75em"}
        return pn.Column(
            pmui.Typography(about, variant="body2", margin=(14, 0, 6, 0), sx=look),
            self._length,
            self._tabs,
            sizing_mode="stretch_width",
        )
