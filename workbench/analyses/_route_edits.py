"""Edits of routing: how they are written, what they make of a layer's choices and weights, and the Python for it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import AnalysisError
from workbench.analyses._experts import weight_of
from workbench.analyses._patching import named
from workbench.models.expert_names import expert_name, parse_expert
from workbench.tasks import Prompts

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.routers import Routed

ALL = ("all",)
HELP = "write it like L2E5=mute, L1E3=force@S2 or L0E1=0.5"
PLAIN = {
    "dtype": "float32",
    "merge": False,
    "override": False,
    "trust_remote_code": False,
    "route": "",
    "tasks": "",
}  # options of loading


@dataclass(frozen=True)
class Edit:
    """What is done to one expert at named positions, token indices, or `all` tokens.

    mute (factor 0): its logit is minus infinity, and the family's rule chooses and weighs among the others. force
    (factor 1): it gets the whole weight of the token's experts. weigh: its weight times the factor, the others keep
    theirs.
    """

    layer: int
    expert: int
    what: str
    factor: float
    at: tuple[str, ...] = ALL

    def __str__(self) -> str:
        what = f"{self.factor:g}" if self.what == "weigh" else self.what
        return f"{expert_name(self.layer, self.expert)}={what}" + ("" if self.at == ALL else f"@{','.join(self.at)}")

    def of(self, expert: int) -> "Edit":
        """The same edit of another expert of the layer."""
        return replace(self, expert=expert)

    def places(self, marks: Mapping[str, int], length: int) -> np.ndarray:
        """The tokens it is aimed at, bool [pos], in a prompt with these named positions."""
        found = np.zeros(length, bool)
        for name in self.at:
            found[slice(None) if name == "all" else int(name) if name.isdecimal() else marks[name]] = True
        return found


Edits = tuple[Edit, ...]


def parse_edits(text: str, model: "Model", prompts: Prompts) -> Edits:
    """Edits from `L2E5=mute; L1E3=force@S2; L0E1=0.5@3,END`.

    Raises:
        AnalysisError: for text in another form; a layer that does not route; an expert or a position that is not there;
            two edits of one expert, or a force and another edit, on the same token; a layer with no expert left.
    """
    found = tuple(_parsed(part.strip(), model, prompts) for part in re.split(r"[;\n]", text) if part.strip())
    if not found:
        raise AnalysisError(f"No edits were given; {HELP}, several of them with ; in between.")
    for index, edit in enumerate(found):
        for other in found[:index]:
            _refuse_both(edit, other, prompts)
    for layer in {edit.layer for edit in found}:
        mutes = [_everywhere(edit, prompts) for edit in found if edit.layer == layer and edit.what == "mute"]
        if any(np.sum(spots, 0).max() >= model.routers.experts for spots in zip(*mutes, strict=True)):
            raise AnalysisError(f"These edits mute every expert of layer {layer} for a token; leave one to choose.")
    return found


def _parsed(part: str, model: "Model", prompts: Prompts) -> Edit:
    form = re.fullmatch(r"([^=@]+)=\s*(mute|force|\d+\.?\d*|\.\d+)\s*(?:@(.+))?", part)
    if not form:
        raise AnalysisError(f"'{part}' is no edit of an expert; {HELP}.")
    (layer, expert), what = parse_expert(form[1]), form[2]
    routers = model.routers
    if layer not in routers.layers:
        known = ", ".join(map(str, routers.layers))
        raise AnalysisError(f"'{part}': layer {layer} does not route; these do: {known}.")
    if expert >= routers.experts:
        raise AnalysisError(
            f"'{part}': there is no {expert_name(layer, expert)}; each layer has {routers.experts} experts."
        )
    at = tuple(dict.fromkeys(name.strip() for name in (form[3] or "all").split(",")))
    for name in at:
        _refuse_unknown(part, name, prompts)
    factor = {"mute": 0.0, "force": 1.0}.get(what)
    at = ALL if "all" in at else at
    return Edit(layer, expert, "weigh", float(what), at) if factor is None else Edit(layer, expert, what, factor, at)


def _refuse_unknown(part: str, name: str, prompts: Prompts) -> None:
    shortest = prompts.lengths.min()
    if name.isdecimal() and int(name) >= shortest:
        raise AnalysisError(f"'{part}': there is no token {name} in every prompt; the shortest has {shortest}.")
    known = named(prompts)
    if not name.isdecimal() and name not in ("all", *known):
        raise AnalysisError(
            f"'{part}': these prompts have no position '{name}'; they have: all, {', '.join(known)}, and token indices."
        )


def _refuse_both(one: Edit, other: Edit, prompts: Prompts) -> None:
    same = one.expert == other.expert or "force" in (one.what, other.what)
    if one.layer != other.layer or not same:
        return
    pairs = zip(_everywhere(one, prompts), _everywhere(other, prompts), strict=True)
    if any((a & b).any() for a, b in pairs):
        why = "are edits of one expert" if one.expert == other.expert else "include a force, which takes all the weight"
        raise AnalysisError(f"'{other}' and '{one}' {why}, and meet on the same token; keep one of them there.")


def _everywhere(edit: Edit, prompts: Prompts) -> list[np.ndarray]:
    """The tokens an edit is aimed at, of each prompt."""
    return [edit.places(marks, len(ids)) for marks, ids in zip(prompts.positions, prompts.clean, strict=True)]


@dataclass
class Surgery:
    """Edits at tokens bool [row, pos], as functions of a pass; `given` is what they found in it, by layer."""

    edits: Edits
    masks: "Sequence[torch.Tensor]"
    given: "dict[int, tuple[torch.Tensor, torch.Tensor]]" = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """What `Routers.run` takes."""
        mutes = {edit.layer for edit in self.edits if edit.what == "mute"}
        others = {edit.layer for edit in self.edits if edit.what != "mute"}
        return {
            "rescore": {layer: lambda logits, at=layer: self._rescored(at, logits) for layer in mutes},
            "reroute": {layer: lambda chosen, w, at=layer: self._rerouted(at, chosen, w) for layer in others},
        }

    def _rescored(self, layer: int, logits: "torch.Tensor") -> "torch.Tensor":
        logits = logits.clone()
        for edit, mask in zip(self.edits, self.masks, strict=True):
            if edit.layer == layer and edit.what == "mute":
                logits[..., edit.expert].masked_fill_(mask, -math.inf)
        return logits

    def _rerouted(
        self, layer: int, chosen: "torch.Tensor", weights: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        self.given[layer] = chosen, weights
        for edit, mask in zip(self.edits, self.masks, strict=True):
            here = mask[..., None]
            if edit.layer == layer and edit.what == "force":
                slot = chosen == edit.expert
                slot[..., 0] |= ~slot.any(-1)
                weights = (slot * weights.sum(-1, keepdim=True)).where(here, weights)
                chosen = chosen.masked_fill(here & slot, edit.expert)
            elif edit.layer == layer and edit.what == "weigh":
                weights = (weights * edit.factor).where(here & (chosen == edit.expert), weights)
        return chosen, weights

    def prove(self, heard: "Mapping[int, Routed]") -> None:
        """Check the choices and weights that the experts were called with.

        Raises:
            AnalysisError: when an edit did not take effect.
        """
        for edit, mask in zip(self.edits, self.masks, strict=True):
            routed = heard[edit.layer]
            found, whole = weight_of(routed, edit.expert)[mask], routed.weights.sum(-1)[mask]
            wanted = {"mute": found * 0, "force": whole}.get(edit.what)
            if wanted is None:
                chosen, weights = self.given[edit.layer]
                wanted = (weights * (chosen == edit.expert)).sum(-1)[mask] * edit.factor
            if not bool((found == wanted).all()) or (edit.what == "force" and not bool((whole > 0).all())):
                raise AnalysisError(
                    f"'{edit}' did not take effect in this family: the experts were called with other weights, so "
                    "nothing was measured; trace a family whose routing can be edited."
                )


def code_of(model: "Model", edits: Edits, ids: np.ndarray, marks: Mapping[str, int]) -> str:
    """Python that does the edits on one prompt, token ids int64 [pos]; it leaves `loss`, `probabilities`, `routed`."""
    options = "".join(f", {name}={value!r}" for name, value in model.spec.items() if PLAIN.get(name, value) != value)
    lines = ["import numpy as np", "import torch", "", "import workbench as wb"]
    lines += ["from workbench.models.ends import unembed", ""]
    lines += [f"model = wb.load({model.reference!r}{options})", f"tokens = model.tensor(np.array([{ids.tolist()}]))"]
    if model.routers.name:
        lines.insert(-1, f"model = model.routed({model.routers.task!r}, {model.routers.name!r})")
    given = {"rescore": [], "reroute": []}
    for layer in dict.fromkeys(edit.layer for edit in edits):
        mine = [edit for edit in edits if edit.layer == layer]
        mutes, others = ([edit for edit in mine if (edit.what == "mute") == mute] for mute in (True, False))
        if mutes:
            given["rescore"].append(layer)
            lines += ["", "", f"def rescore_{layer}(logits):  # [row, pos, expert], before the family's rule"]
            lines += ["    logits = logits.clone()", *(_mute_line(edit, marks, ids) for edit in mutes)]
            lines.append("    return logits")
        if others:
            given["reroute"].append(layer)
            lines += ["", "", f"def reroute_{layer}(chosen, weights):  # [row, pos, k], after the family's rule"]
            lines += ["    chosen, weights = chosen.clone(), weights.clone()"]
            lines += [line for edit in others for line in _reroute_lines(edit, marks, ids)]
            lines.append("    return chosen, weights")
    said = (
        f", {name}={{{', '.join(f'{layer}: {name}_{layer}' for layer in layers)}}}"
        for name, layers in given.items()
        if layers
    )
    lines += ["", "", "routed = []", f"last = model.routers.run(tokens, routed.append{''.join(said)})"]
    lines += ["loss = model.routers.losses(last, tokens).mean()"]
    lines += ["probabilities = unembed(model.plain, last[:, -1]).softmax(-1).detach()"]
    return "\n".join(lines) + "\n"


def _spelled(edit: Edit, marks: Mapping[str, int], ids: np.ndarray) -> str:
    return ":" if edit.at == ALL else str(np.flatnonzero(edit.places(marks, len(ids))).tolist())


def _mute_line(edit: Edit, marks: Mapping[str, int], ids: np.ndarray) -> str:
    return f"    logits[:, {_spelled(edit, marks, ids)}, {edit.expert}] = -torch.inf  # {edit}"


def _reroute_lines(edit: Edit, marks: Mapping[str, int], ids: np.ndarray) -> list[str]:
    at = _spelled(edit, marks, ids).replace(":", "slice(None)")
    if edit.what == "weigh":
        return [
            f"    at = {at}  # {edit}",
            f"    weights[:, at] *= torch.where(chosen[:, at] == {edit.expert}, {edit.factor!r}, 1.0)",
        ]
    return [
        f"    at = {at}  # {edit}",
        f"    slot = chosen[:, at] == {edit.expert}",
        "    slot[..., 0] |= ~slot.any(-1)  # the expert's own place, or else the first",
        "    weights[:, at] = slot * weights[:, at].sum(-1, keepdim=True)",
        f"    chosen[:, at] = torch.where(slot, {edit.expert}, chosen[:, at])",
    ]
