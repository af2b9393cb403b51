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
# # Attention sinks, in ten minutes
#
# The weights of a softmax sum to 1, so a head that has nothing to say must still put its attention somewhere. It parks
# it on one token, often the first: an **attention sink**. This notebook asks of a small trained model which heads do
# so, on which tokens, since when in training, whether the model needs it, and what it does to the question of which
# heads two tasks share. Each number is printed beside its control.

# %%
import numpy as np

import workbench as wb
from workbench.models.heads import head_name
from workbench.models.reference import checkpoints

NAME = "zoo/tasks-backcopy"
model = wb.load(NAME)
backcopy, ioi = wb.task("backcopy"), wb.task("ioi", corruption="value_swap")
model

# %% [markdown]
# One of its tasks is *Bigram-Backcopy* (arXiv 2410.13835): letters that follow a fixed table of pairs, but after one of
# three trigger letters the letter *before* the trigger comes again. A head that copies has work to do at triggers, and
# nowhere else.
#
# ## Which heads park their attention
#
# alpha is the mean attention a key receives from itself and all later tokens; the sink rate is the share of heads and
# sequences with alpha above 0.3 (arXiv 2410.10781). As a check, the same is measured on random tokens, and on one token
# repeated.

# %%
scores = wb.run("sink_scores", model, backcopy)
uniform = float(scores["alpha_null"][0])
resting = np.argwhere(scores["alpha"].values[..., 0] > scores.attrs["epsilon"]).tolist()
for layer, head in resting:
    at = scores.sel(layer=layer, head=head, key_pos=0)
    ends = f"{float(at['alpha_low']):.2f} to {float(at['alpha_high']):.2f}"
    print(f"{head_name(layer, head)}: alpha of BOS {float(at['alpha']):.2f} ({ends}; uniform attention {uniform:.2f})")
for control, rate in zip(scores["measured"].values, scores["control_rate"].values, strict=True):
    print(f"sink rate of the first token on {control}: {rate:.3f}")
maps = wb.show(scores)
maps

# %% [markdown]
# ### On which kinds of tokens, and what goes with it
#
# A dot is a head; the grey lines are what uniform attention would give to tokens in those places. Below, the companions
# that the literature names: the residual norm of the sink, the norms of its value and key, and whether queries point to
# its key. Grey dots are an ordinary position.

# %%
wb.show(scores, "sink_kinds")

# %%
wb.show(scores, "sink_norms")

# %% [markdown]
# ### The same at a glance
#
# The figure 2 of StreamingLLM (arXiv 2309.17453), attention scores averaged over many short texts, in one call. A
# stripe down the left side is a sink on the first token.

# %%
wb.show(wb.run("mean_attention", model, backcopy), "first_tokens")

# %% [markdown]
# ## Active here, dormant there
#
# D is a head's mean attention on the first token. A head is *dormant* on a task if it rests there and the task does
# without it, and *active* if its ablation changes the task by more than moving its output as far in a random direction
# does. Four tasks, all heads; stars are heads that are active on one task and not on another.

# %%
tasks = (backcopy, ioi, wb.task("colored_objects"), wb.task("induction"))
states = wb.concat({task.title: wb.run("dormant_heads", model, task) for task in tasks}, dim="task")
wb.show(states)

# %% [markdown]
# Among the heads that backcopy needs, which one rests on BOS most? The prompts of backcopy end in a trigger, so its
# attention on BOS there is that of a head at work. And letter by letter, in running text:

# %%
from workbench.tasks.backcopy import TRIGGERS

own = states.sel(task=backcopy.title)
needed = own["dormancy"].where(own["state"] == 2, -1)
best = {dim: int(place) for dim, place in needed.argmax(["layer", "head"]).items()}
layer, head = best["layer"], best["head"]
sleeper, one = head_name(layer, head), own.isel(best)
print(f"{sleeper}: D {float(one['dormancy']):.2f} over all letters, {float(one['dormancy_at']):.2f} at the trigger")
print(f"without it, backcopy loses {float(one['lost']):.0%} (a random change as large: {float(one['lost_null']):.0%})")

rest = {"at triggers": [], "at other letters": []}
for text in range(8):
    seen = wb.run("attention", model, backcopy, prompt=text, length=64)
    for token, weight in zip(seen["token"].values[2:], seen["pattern"].values[layer, head, 2:, 0], strict=True):
        rest["at triggers" if token in TRIGGERS else "at other letters"].append(weight)
for where, weights in rest.items():
    print(f"{sleeper} {where}: {np.mean(weights):.2f} of its attention on BOS, {len(weights)} letters")

# %% [markdown]
# ## Since when
#
# The same scores at every checkpoint that is kept with the model.

# %%
steps = {str(step): wb.run("sink_scores", f"{NAME}@{step}", backcopy) for step in checkpoints(NAME)}
wb.show(wb.concat(steps, dim="checkpoint"))

# %% [markdown]
# ## Secondary sinks
#
# In large models further tokens become sinks in mid-network: an MLP turns them towards the first token's direction, and
# its norm sets how long they stay (arXiv 2512.22213). Here is the same detector, beside one that looks for random
# tokens' directions; a model this shallow leaves it little room, and the cell says what it found.

# %%
secondary = wb.run("secondary_sinks", model, ioi)
print(secondary.attrs["rule"])
for kind in secondary["component"].values:
    drawn = secondary["count_null"].sel(component=kind).values
    found = int(secondary["count"].sel(component=kind))
    print(f"{kind}: {found} tokens beside the first ones; with random directions {drawn.mean():.1f} on average")
wb.show(secondary)

# %% [markdown]
# ## Does the model need its sink?
#
# No token may look at the sink any more, in any layer; or the MLP output that makes it is replaced by that of ordinary
# tokens. The control does the same to as many ordinary tokens of the same sequences, twenty times.

# %%
tested = {what: wb.run("sink_ablation", model, backcopy, what=what) for what in ("mask", "remove")}
for what, ds in tested.items():
    at = ds.sel(component="primary")
    low, high = float(at["loss_change_null_low"]), float(at["loss_change_null_high"])
    change = f"{float(at['loss_change']):+.4f} nats, ordinary tokens {low:+.4f} to {high:+.4f}"
    print(f"{what}: the loss changes by {change}: {at['verdict'].item()}")
wb.show(tested["mask"])

# %% [markdown]
# ## What it does to circuit reuse
#
# Patching a head's output restores what it says, but also whether it rests on the sink. Sink-aware patching takes the
# second part out: what is left is what the head says. A *parked* head has an effect, but next to none of it is left. Do
# backcopy and Colored Objects share heads, and does it make a difference?

# %%
pair = (backcopy, wb.task("colored_objects", corruption="value_swap"))
plain = [wb.run("head_patching", model, task) for task in pair]
aware = [wb.run("sink_aware_patching", model, task) for task in pair]
for words, results in (("plain patching", plain), ("beyond the sink", aware)):
    shared = wb.overlap(*results, top=0.125)
    at = shared.sel(size=shared.attrs["chosen"])
    names = ", ".join(head_name(*cell) for cell in np.argwhere(shared["shared"].values).tolist()) or "none"
    print(f"{words}: shared {names}; IoU {float(at['iou']):.2f}, 95 % point of chance {float(at['iou_null_high']):.2f}")
for ds in aware:
    print(f"parked on {ds.attrs['task']}: {int(ds['parked'].sum())} of {ds['parked'].size} heads")
wb.show(aware[0])

# %% [markdown]
# ## Look for yourself
#
# The viewer shows all heads, or one large; here the head from above, in an early checkpoint and in the final model.
# Click rows and tokens, mask the sink, or see the difference of the two. It is linked to the maps at the top: a head
# picked in one is picked in both.

# %%
early = wb.run("attention", f"{NAME}@{checkpoints(NAME)[1]}", backcopy)
late = wb.run("attention", model, backcopy)
viewer = wb.show(early, "attention_pattern", layer=layer, head=head, other=late)
wb.link(maps, viewer)
viewer

# %% [markdown]
# ## To go on
#
# `wb.run("massive_activations", ...)` looks for the activations that such sinks rest on in large models. All of this
# takes any causal model (`length=` for longer texts), and the dashboard (`make app`, *Sinks*) shows it without code.
