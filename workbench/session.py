"""What a person is looking at now: model, tasks, head, token. Views watch it, so a selection is one everywhere."""

import param

from workbench.models.heads import head_name, parse_head
from workbench.registry import WorkbenchError

URL = (
    *("model", "checkpoint", "task_a", "corruption_a", "task_b", "corruption_b", "n", "seed", "top", "head", "prompt"),
    *("query", "page", "part", "sink", "route", "layer", "surgery", "tune", "run", "length", "edges"),
    *("gradient", "others"),
)


class Session(param.Parameterized):
    """The state of one dashboard or notebook; plain values only, so that an address can carry all of it."""

    model = param.String("zoo/tasks", doc="Reference of the model, without a checkpoint.")
    checkpoint = param.String("final", doc="Training step of the weights, or 'final'.")
    task_a = param.String("ioi", doc="First task.")
    corruption_a = param.String("value_swap", doc="How its prompts are corrupted.")
    task_b = param.String("colored_objects", doc="Second task.")
    corruption_b = param.String("value_swap", doc="How its prompts are corrupted.")
    n = param.Integer(64, bounds=(8, 1024), doc="Prompts a task.")
    seed = param.Integer(0, bounds=(0, None), doc="Seed of the prompts.")
    top = param.Number(0.125, bounds=(0, 1), inclusive_bounds=(False, True), doc="Circuit size, share of all heads.")
    head = param.String("", doc="Selected head, like L2H3; empty for none.")
    prompt = param.Integer(0, bounds=(0, 31), doc="Prompt (or sequence) shown in detail.")
    query = param.Integer(-1, bounds=(-1, None), doc="Selected query token; -1 for the last.")
    page = param.Integer(0, bounds=(0, 4), doc="Open page: 0 circuits, 1 sinks, 2 routing, 3 gradients, 4 tune.")
    part = param.Integer(0, bounds=(0, 5), doc="Open part of the circuits: heads, paths, edges, reuse, roles, repair.")
    sink = param.Integer(
        0, bounds=(0, 6), doc="Open part of the sinks: scores, secondary, test, massive, dormant, reuse, viewer."
    )
    route = param.Integer(
        0,
        bounds=(0, 7),
        doc="Open part of the routing: load, tasks, together, special, training, causal, surgery, map.",
    )
    gradient = param.Integer(
        0, bounds=(0, 4), doc="Open part of the gradients: tasks, layers, heads, training, saliency."
    )
    others = param.String("", doc="Further tasks of gradients and of the map of tokens, by name, with commas between.")
    tune = param.Integer(0, bounds=(0, 2), doc="Open part of tuning: new run, runs, changes.")
    run = param.String("", doc="Name of the fine-tune whose curves are shown.")
    layer = param.Integer(-1, bounds=(-1, None), doc="Layer of routers shown in detail; -1 for the last.")
    surgery = param.String("", doc="Edits of routing, like L2E5=mute; L1E3=force@S2.")
    length = param.Integer(64, bounds=(3, None), doc="Tokens in a sequence of running text.")
    edges = param.Integer(40, bounds=(0, None), doc="Edges of the circuit that is drawn; 0 for all.")

    @property
    def reference(self) -> str:
        """The model's reference, its checkpoint included."""
        return self.model if self.checkpoint == "final" else f"{self.model}@{self.checkpoint}"

    @property
    def selected(self) -> list[int]:
        """The selected head as a head grid has it: [layer, head] or []."""
        try:
            return list(parse_head(self.head)) if self.head else []
        except WorkbenchError:
            return []

    def select(self, cell: list[int]) -> None:
        """Select a head by [layer, head], or none by []."""
        self.head = head_name(*cell) if cell else ""
