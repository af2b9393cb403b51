"""The Circuits page: heads, paths, edges, reuse with its controls, roles, and the repair experiment."""

from workbench.app.edges import EdgesPart
from workbench.app.heads import HeadsPart
from workbench.app.paths import PathsPart
from workbench.app.repair import RepairPart
from workbench.app.reuse import ReusePart
from workbench.app.roles import RolesPart
from workbench.app.tabs import Part, TabbedPage

PARTS: dict[str, Part] = {
    "Heads": HeadsPart,
    "Paths": PathsPart,
    "Edges": EdgesPart,
    "Reuse": ReusePart,
    "Roles": RolesPart,
    "Repair": RepairPart,
}


class CircuitsPage(TabbedPage):
    """One tab for each way to look at the circuits of both tasks."""

    parts, number, tab = PARTS, 0, "part"
