# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Circuit reuse in GPT-2 Medium: a published result, measured again
#
# The paper *Circuit Component Reuse Across Tasks in Transformer Language Models* (arXiv 2310.08744) found that two
# different tasks use mostly the same attention heads of GPT-2 Medium. This notebook makes its tables again.
#
# **What it needs:** GPT-2 Medium, about 1.5 GB of safetensors weights, as a local directory or in the hub cache. A hub
# id that is not in the cache is downloaded if the hub can be reached. Without the model, all cells still run, and the
# notebook shows only what the paper found.
#
# Environment variables, read when the next cell runs:
#
# - `REPLICATE_MODEL`: a directory or a hub id (as it is named in the cache); `gpt2-medium` if not set
# - `REPLICATE_N`: prompts a task; 64 if not set
# - `REPLICATE_TOP`: the share of all heads that counts as the strongest of a stage; 0.02, as in the paper, if not set
#
# **How long it takes:** not measured on the published weights, nor on a GPU. On random weights of the same shape, with
# 8 prompts a task and two CPU cores that had other work too, path patching took 3 minutes, the ablations 11, and the
# role scores more than 4. The time grows with the number of prompts, so 64 of them take hours on two cores. For a first
# look set `REPLICATE_N=8`. Finished results are kept on disk: a second run starts from them.

# %%
import json
import os

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import Markdown, display

import workbench as wb
from workbench import theme
from workbench.models.heads import head_name, parse_head
from workbench.models.reference import ModelError, find
from workbench.views import show

MODEL = os.environ.get("REPLICATE_MODEL") or "gpt2-medium"
N = int(os.environ.get("REPLICATE_N") or 64)
TOP = float(os.environ.get("REPLICATE_TOP") or 0.02)

model, is_medium = None, False
try:
    source = find(MODEL)
    model = wb.load(MODEL, bos=False)
    family = json.loads((source.folder / "config.json").read_text()).get("model_type")
    is_medium = family == "gpt2" and (model.n_layers, model.n_heads) == (24, 16)
    shape = f"{model.n_layers} layers of {model.n_heads} heads"
    known = "the shape of GPT-2 Medium" if is_medium else "not the shape of GPT-2 Medium, so a stand-in for it"
    display(Markdown(f"`{MODEL}` has {shape}: {known}."))
except ModelError as error:
    display(
        Markdown(
            f"**This notebook needs GPT-2 Medium, and there is none at `{MODEL}`; set `REPLICATE_MODEL` to its "
            f"directory or hub id and run all cells again.**\n\n    {error}"
        )
    )
model

# %% [markdown]
# ## What the paper found
#
# All figures in these two tables are the paper's. Heads are written layer.head; for 13.13 one of its appendices has
# 13.14.

# %%
PAPER_ROLES = {
    "mover": "15.14 16.15 17.4 18.5 19.15",
    "induction": "9.3",
    "duplicate token": "6.4",
    "inhibition": "12.3 13.4 13.13",
    "negative mover": "19.1",
    "content gatherer": "11.6 11.7 12.15",
}
USED_BY = {"inhibition": "IOI", "negative mover": "IOI", "content gatherer": "Colored Objects"}
SOURCE = "arXiv 2310.08744"


def percent(value, digits=0):
    return f"{value:.{digits}%}".replace("%", " %")


pd.DataFrame(
    [(role, heads.replace(" ", ", "), USED_BY.get(role, "both"), SOURCE) for role, heads in PAPER_ROLES.items()],
    columns=["role in the paper", "heads", "used by", "source"],
).style.hide()

# %%
PAPER_REPAIR = {"all four heads": 0.937, "inhibition heads only": 0.815, "negative mover only": 0.781}

pd.DataFrame(
    [
        ("overlap of the two circuits, top 2 % of heads a stage", "25 of 32 heads (78 %)", SOURCE),
        ("the same question in GPT-2 Large", "5 of the top 10 heads", SOURCE),
        ("the same question in GPT-2 XL", "0 of the top 10 heads", SOURCE),
        ("Colored Objects accuracy, model unchanged", "49.6 %", SOURCE),
        *[(f"accuracy, attention edited: {name}", percent(value, 1), SOURCE) for name, value in PAPER_REPAIR.items()],
        ("accuracy, attention edited: random heads", "49.9 ± 1.0 %", SOURCE),
    ],
    columns=["measured", "in the paper", "source"],
).style.hide()

# %% [markdown]
# ## The two tasks, and how they are set up here
#
# | setting | here | in the paper |
# |---|---|---|
# | first token | no BOS (`bos=False`) | no BOS |
# | weights | raw | layer norms folded, weights centred; the share a path carries is the same either way |
# | IOI, corrupted | `s2_to_io`: the repeated name becomes the receiver's | the same |
# | Colored Objects, corrupted | `query`: another of the three objects is asked for | the same |
# | metric | logit of the answer minus logit of the wrong answer, at the last token | the same |
# | **Colored Objects, prompts** | **one scene and one question, no example** | **the same after a worked example** |
#
# The last row is a real difference. The prompts here are shorter, the words and the lower-case colours are the
# workbench's own, and a model that was shown no example is less sure of the form of the answer. Figures can differ from
# the paper's for that reason alone.
#
# An effect is the share of the drop from the clean to the corrupted metric that one path alone causes: 0 is the clean
# run, 1 the corrupted one. Positive means the path helps the task, negative that it works against it.

# %%
tasks = {
    "IOI": wb.task("ioi", corruption="s2_to_io", n=N),
    "Colored Objects": wb.task("colored_objects", corruption="query", n=N),
}
if model is not None:
    for name, task in tasks.items():
        prompts = task.encode(model.tokenizer, bos=model.bos)
        common = set.intersection(*(set(marks) for marks in prompts.positions))
        display(
            Markdown(
                f"**{name}**, {len(prompts)} prompts, such as: *{prompts.texts[0]}*. "
                f"Positions every prompt has: {', '.join(sorted(common))}."
            )
        )

# %% [markdown]
# ## Path patching in three stages
#
# From the output backwards: (1) which heads write to the logits at the last token; (2) which heads write to the queries
# of the strongest of those; (3) which heads write to the values of the strongest of stage 2. Stage 3 is sent where
# those heads should be reading: at the repeated name (`S2`) in IOI, at the object asked for (`query`) in Colored
# Objects. Every other head is held at its clean output; MLPs are computed anew.

# %%
STAGES = {"IOI": "logits@END; q@END; v@S2", "Colored Objects": "logits@END; q@END; v@query"}
TITLES = ["1: to the logits", "2: to the queries of those", "3: to the values of those"]


def strongest(effect, share):
    """The (layer, head) of the largest |effect|; a head that no path leads from (effect 0) is never among them."""
    order = np.argsort(-abs(effect), axis=None, kind="stable")[: max(1, round(share * effect.size))]
    return {tuple(map(int, np.unravel_index(place, effect.shape))) for place in order if effect.flat[place] != 0}


def pooled(traced, share):
    """The strongest heads of every stage together."""
    return set().union(*(strongest(stage, share) for stage in traced["effect"].values))


def listed(heads):
    return ", ".join(head_name(*head) for head in sorted(heads))


traced = {}
if model is not None:
    for name, task in tasks.items():
        traced[name] = wb.run("path_patching", model, task, stages=STAGES[name], top=TOP)
        right = float((traced[name]["metric_clean"] > 0).mean())
        low = abs(traced[name].attrs["clean"] - traced[name].attrs["corrupted"]) < 0.5
        note = " The gap is small, so shares of it are unsteady." if low else ""
        display(
            Markdown(
                f"**{name}**: logit difference {traced[name].attrs['clean']:.2f} clean, "
                f"{traced[name].attrs['corrupted']:.2f} corrupted; the answer beats the wrong answer in "
                f"{percent(right)} of the clean prompts.{note}"
            )
        )
    display(
        pd.DataFrame(
            {name: [listed(strongest(stage, TOP)) for stage in ds["effect"].values] for name, ds in traced.items()},
            index=TITLES,
        )
    )

# %% [markdown]
# The same as maps, IOI first. A bright head carries much of the task along that stage's paths.

# %%
maps = None
if model is not None:
    maps = show(traced["IOI"].assign_coords(receiver=[f"IOI, {title}" for title in TITLES]))
maps

# %%
maps = None
if model is not None:
    maps = show(traced["Colored Objects"].assign_coords(receiver=[f"Colored Objects, {title}" for title in TITLES]))
maps

# %% [markdown]
# ## How many heads both tasks use
#
# The strongest heads of all stages, pooled for each task. The paper counts 25 of 32, and does not say which stages make
# up the 32; three stages of 8 heads here give at most 24. What can be compared is the share, here twice the heads in
# common over the sum of the two sizes, which is 78 % for 25 in common of 32 and 32.
#
# Chance has two lines. *All heads*: two sets of these sizes drawn from the whole model. *Within layers*: drawn with as
# many heads in each layer as the real circuits have, which is stricter, since both tasks do late work in late layers.
# The receivers of stages 2 and 3 stay those of the chosen share; only the number of senders counted changes.

# %%
DRAWS = 20_000


def chance(first, second, layers, heads, draws=DRAWS):
    """Heads in common of two random sets: (mean, 95 % point) over the whole model, and the same within layers."""
    rng = np.random.default_rng(0)
    total, (a, b) = layers * heads, (np.zeros(layers, int), np.zeros(layers, int))
    for counts, circuit in ((a, first), (b, second)):
        np.add.at(counts, [layer for layer, _ in circuit], 1)
    anywhere = rng.hypergeometric(len(first), total - len(first), len(second), draws)
    within = rng.hypergeometric(a, heads - a, b, (draws, layers)).sum(1)
    exact = len(first) * len(second) / total, (a * b / heads).sum()
    return (exact[0], np.quantile(anywhere, 0.95)), (exact[1], np.quantile(within, 0.95))


def compared(share):
    """One row of the table: the two circuits at a share of all heads in each stage."""
    first, second = (pooled(ds, share) for ds in traced.values())
    anywhere, within = chance(first, second, model.n_layers, model.n_heads)
    common, sizes = len(first & second), len(first) + len(second)
    return {
        "top share a stage": share,
        "heads, IOI": len(first),
        "heads, Colored Objects": len(second),
        "in common": common,
        "share": 2 * common / sizes,
        "chance": anywhere[0],
        "chance, 95 %": anywhere[1],
        "within layers": within[0],
        "within layers, 95 %": within[1],
        "chance as share": 2 * anywhere[1] / sizes,
        "within layers as share": 2 * within[1] / sizes,
    }


curve = None
if model is not None:
    curve = pd.DataFrame([compared(share) for share in sorted({0.01, 0.02, 0.05, 0.10, TOP})])
    curve = curve.set_index("top share a stage")
    display(curve.drop(columns=["chance as share", "within layers as share"]).round(2))

# %%
figure = None
if model is not None:
    lines = {
        "in common": ("share", theme.TASKS[0], "solid"),
        "95 % point of chance, all heads": ("chance as share", theme.QUIET, "dash"),
        "95 % point of chance, within layers": ("within layers as share", theme.TASKS[4], "dot"),
    }
    figure = go.Figure()
    for name, (column, colour, dash) in lines.items():
        line = {"color": colour, "dash": dash}
        figure.add_scatter(x=100 * curve.index, y=curve[column], mode="lines+markers", name=name, line=line)
    figure.add_hline(y=25 / 32, line={"color": theme.TASKS[1], "width": 1}, annotation_text="the paper, at 2 %: 78 %")
    title = f"Heads shared by IOI and Colored Objects in {theme.plain(MODEL)}"
    title += f"<br><sup>n = {N}, path patching, three stages</sup>"
    figure.update_layout(**theme.layout(title, legend={"orientation": "h", "y": -0.25}))
    figure.update_xaxes(title="strongest heads counted in each stage, % of all")
    figure.update_yaxes(title="share in common", range=[0, 1.05])
figure

# %%
if model is not None:
    first, second = (pooled(ds, TOP) for ds in traced.values())
    at = curve.loc[TOP]
    wide, narrow = (at["in common"] > at[f"{name}, 95 %"] for name in ("chance", "within layers"))
    verdict = "more than either kind of chance gives" if wide and narrow else "no more than chance gives"
    if wide != narrow:
        yes, no = ("the whole model", "the same layers") if wide else ("the same layers", "the whole model")
        verdict = f"more than chance gives over {yes}, but not more than over {no}"
    display(
        Markdown(
            f"At {percent(TOP)} a stage the tasks have **{int(at['in common'])} heads in common, a share of "
            f"{percent(at['share'])}** (the paper: 78 %): {verdict} (95 % points {at['chance, 95 %']:.0f} and "
            f"{at['within layers, 95 %']:.0f}).\n\n"
            f"- both: {listed(first & second) or 'none'}\n- only IOI: {listed(first - second) or 'none'}\n"
            f"- only Colored Objects: {listed(second - first) or 'none'}"
        )
    )

# %% [markdown]
# ## Does one task need the other's heads?
#
# Heads in common do not yet mean a mechanism in common, and heads that differ can still be needed. So each circuit is
# ablated (its heads give their output of the corrupted run, at all positions), and both tasks are measured, beside as
# many random heads of the same layers.

# %%
sets, crossed = {}, None
if model is not None:
    sets = {
        "IOI": first,
        "Colored Objects": second,
        "shared": first & second,
        "only IOI": first - second,
        "only Colored Objects": second - first,
    }
    written = "; ".join(f"{name}={listed(heads)}" for name, heads in sets.items())
    lost = {name: wb.run("ablation", model, task, sets=written) for name, task in tasks.items()}
    crossed = wb.concat(lost, dim="measured")
    display(show(crossed, "ablation_matrix"))

# %%
if model is not None:
    lines = []
    for measured, other in (("IOI", "Colored Objects"), ("Colored Objects", "IOI")):
        own, its = (crossed.sel(measured=measured, component=name) for name in (measured, other))
        over = "more than" if float(its["lost"]) > float(its["lost_null_high"]) else "not more than"
        lines.append(
            f"- {measured} loses {float(own['lost']):.2f} without its own circuit and {float(its['lost']):.2f} without "
            f"that of {other}, which is {over} the 95 % point of random heads ({float(its['lost_null_high']):.2f})."
        )
    display(Markdown("\n".join(lines)))

# %% [markdown]
# ## What the heads do
#
# Each head is scored by the tests for its possible roles and labelled with the best from 0.3 on. Duplicate-token and
# induction scores come from random tokens repeated; mover, inhibition and gatherer scores from the task's prompts.

# %%
roles = {}
if model is not None:
    for name, task in tasks.items():
        roles[name] = wb.run("head_roles", model, task)
        display(show(roles[name], "role_table"))

# %% [markdown]
# Where the model is GPT-2 Medium, the next table takes the paper's heads one by one: the role they were labelled with
# here, their score on the paper's role (in the task that can show it best), and the stages of path patching in which
# they are among the strongest. A score that could not be measured is empty: inhibition needs movers to send to.

# %%
paper_heads = {parse_head(head): role for role, heads in PAPER_ROLES.items() for head in heads.split()}


def label(ds, head):
    place = int(ds["role"].values[head])
    return "none" if place < 0 else str(ds["component"].values[place])


def found_in(name, head):
    stages = enumerate(traced[name]["effect"].values, 1)
    numbers = [str(number) for number, stage in stages if head in strongest(stage, TOP)]
    return ", ".join(numbers) or "none"


if is_medium:
    rows = []
    for head, role in paper_heads.items():
        scores = [ds["score"].sel(component=role).values[head] for ds in roles.values() if role in ds["component"]]
        row = {"head": head_name(*head), "role in the paper": role, "score on it": max(scores, default=float("nan"))}
        row |= {f"label, {name}": label(ds, head) for name, ds in roles.items()}
        row |= {f"stages, {name}": found_in(name, head) for name in traced}
        rows.append(row)
    display(pd.DataFrame(rows).round(2))
    kept = sum(row["role in the paper"] in (row["label, IOI"], row["label, Colored Objects"]) for row in rows)
    inside = sum(head in first | second for head in paper_heads)
    display(
        Markdown(
            f"{kept} of the paper's {len(rows)} heads are labelled with the paper's role in at least one task, and "
            f"{inside} of them are in at least one of the two circuits."
        )
    )

# %% [markdown]
# ## The repair
#
# The paper's causal test: on Colored Objects, chosen heads are made to attend, from the last token, to the two wrong
# colours, half each. If they do there what they do in IOI, the wrong colours are held back and accuracy rises. Random
# heads of the same layers, 20 draws, get the same edit.
#
# In GPT-2 Medium the heads are the paper's three inhibition heads and its negative mover; in any other model, the two
# strongest heads of stage 2 of IOI, which is where inhibition heads show. An answer counts as right when it is the most
# likely of all tokens. Without a worked example that may be rare, whatever the heads do, and accuracy then shows
# nothing; so the logit difference (colour asked for minus one wrong colour) stands beside it.

# %%
if is_medium:
    inhibition, negative = (PAPER_ROLES[role].split() for role in ("inhibition", "negative mover"))
    edits = dict(zip(PAPER_REPAIR, ([*inhibition, *negative], inhibition, negative), strict=True))
elif model is not None:
    effect = traced["IOI"]["effect"].values[1]
    two = [np.unravel_index(place, effect.shape) for place in np.argsort(-abs(effect), axis=None, kind="stable")[:2]]
    edits = {"the two strongest of stage 2": [head_name(*map(int, head)) for head in two]}

repaired = {}
if model is not None:
    weights = "color_other_1=1, color_other_2=1"
    for name, heads in edits.items():
        options = {"heads": ",".join(heads), "weights": weights, "draws": 20}
        repaired[name] = wb.run("repair", model, tasks["Colored Objects"], **options)
        display(show(repaired[name], "repair_plot"))


# %%
def placed(before, after, drawn, written):
    """Where an edited figure lies beside the random heads, in words."""
    change = "raised" if after > before else "lowered" if after < before else "not changed"
    where = "above every one of" if after > max(drawn) else "below every one of" if after < min(drawn) else "among"
    return (
        f"{change} ({written(before)} to {written(after)}), which is {where} the {len(drawn)} draws of random heads "
        f"({written(min(drawn))} to {written(max(drawn))})"
    )


def verdict_on(ds):
    """What the edit did, from the numbers alone."""
    accuracy, metric = (
        placed(*ds[name].sel(component=["unchanged", "edited"]).values, ds[f"{name}_random"].values, written)
        for name, written in (("accuracy", lambda x: percent(x, 1)), ("metric", lambda x: f"{x:.2f}"))
    )
    if float(ds["accuracy"].max()) == 0:
        accuracy += ", so accuracy shows nothing here"
    turned = f"{ds.attrs['mended']} prompts turned right and {ds.attrs['broken']} wrong"
    return f"accuracy is {accuracy}; {turned}. The logit difference is {metric}."


if model is not None:
    rows = []
    for name, ds in repaired.items():
        row = {"attention edited in": f"{name}: {ds.attrs['edited']}"}
        for variable, title in (("accuracy", "accuracy"), ("metric", "logit difference")):
            drawn = ds[f"{variable}_random"].values
            row |= {f"{title}, {state}": float(ds[variable].sel(component=state)) for state in ("unchanged", "edited")}
            row[f"{title}, random heads"] = f"{drawn.mean():.3f} ({drawn.min():.3f} to {drawn.max():.3f})"
        row["accuracy, edited, in the paper"] = PAPER_REPAIR.get(name, float("nan"))
        rows.append(row)
    display(pd.DataFrame(rows).round(3).set_index("attention edited in").T)
    display(Markdown("\n".join(f"- {name}: {verdict_on(ds)}" for name, ds in repaired.items())))
