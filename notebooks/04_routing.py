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
# # Routing, in ten minutes
#
# A mixture of experts sends each token through a few of its experts; a routed adapter gives each task, or token, its
# own mix of skills. This notebook asks of a small trained mixture of experts where its tokens go, whether that tells
# anything of the task, which experts the model needs, and what happens when one is taken from it. A number alone says
# little here: tokens of different tasks *are* different, so even random routers tell them apart. Each stands beside its
# null.

# %%
import numpy as np

import workbench as wb
from workbench.models.expert_names import expert_name
from workbench.models.reference import checkpoints

NAME = "zoo/tasks-moe"
NAMES = ("ioi", "colored_objects", "induction", "greater_than", "subject_verb")
model = wb.load(NAME)
tasks = {name: wb.task(name, n=16) for name in NAMES}  # few prompts, so that this is quick; more narrow the intervals
model

# %% [markdown]
# The line *routers* of the trust card says that the experts used were seen to be the top of the logits that were read.
#
# ## Where tokens go
#
# Load: share of a task's tokens that an expert gets; the line is an even router's k / E. The strip below shows the
# first sequences of one task, token by token, with layers downwards.

# %%
routes = {name: wb.run("routing", model, task) for name, task in tasks.items()}
wb.show(wb.concat(routes, dim="task"), "expert_load")

# %%
wb.show(routes["ioi"], "expert_strip")

# %% [markdown]
# ## Does the choice of expert tell the task?
#
# Mutual information of task and expert, in each layer, beside its two nulls: tasks shuffled among sequences, and
# routers with random weights on the same residual streams. Only what lies above both was learned by the router.

# %%
between = wb.task_routing(*routes.values())
kind = between.sel(measured="task, first choice")
for layer in between["layer"].values:
    at = kind.sel(layer=layer)
    shuffled, chance = float(at["specialisation_null_high"]), float(at["specialisation_random_high"])
    found = float(at["specialisation"])
    said = "above both" if found > max(shuffled, chance) else "not above both"
    print(f"layer {layer}: {found:.2f} (tasks shuffled {shuffled:.2f}, random routers {chance:.2f}): {said}")
wb.show(between)

# %%
wb.show(between, "task_flow")

# %% [markdown]
# Which experts go together, and how much of a token id's occurrences go to one expert:

# %%
wb.show(routes["ioi"], "coactivation")

# %%
wb.show(routes["ioi"], "specialisation")

# %% [markdown]
# ## When it formed
#
# Saturation: the share of a token's experts at a training step that are its experts at the end. Chance is k / E.

# %%
along = {str(step): wb.run("routing", wb.load(f"{NAME}@{step}"), tasks["ioi"]) for step in checkpoints(NAME)}
wb.show(wb.routing_drift({**along, "final": routes["ioi"]}))

# %% [markdown]
# Did the *experts* move, or only the routers? SAME (arXiv 2602.01990) keeps the later experts and fits the routers
# anew: what a fresh router cannot win back was lost by the experts. The control fits the earlier routers anew as well.

# %%
drift = wb.run("expert_drift", wb.load(f"{NAME}@{checkpoints(NAME)[-1]}"), tasks["colored_objects"], steps=60)
wb.show(drift)

# %% [markdown]
# ## Which experts the model needs
#
# Closing an expert and letting the router choose among the others is the one measure here that is not a correlation.
# Controls take an expert from as many random tokens.

# %%
closed = wb.run("expert_ablation", model, tasks["colored_objects"], length=32, sequences=8)
at = closed.isel(closed["lost"].argmax(["layer", "expert"]))
needed = expert_name(int(at["layer"]), int(at["expert"]))
lost, controls = float(at["lost"]), float(at["lost_null_high"])
print(f"closing {needed} costs {lost:.2f} of the metric (controls up to {controls:.2f})")
wb.show(closed)

# %% [markdown]
# How much rank an expert needs (FlexMoRE, arXiv 2602.08818): each expert's difference from the mean of its layer's
# experts, cut to its leading singular directions, beside random subspaces of the same rank.

# %%
cut = wb.concat({name: wb.run("expert_truncation", model, tasks[name]) for name in NAMES[:2]}, dim="task")
wb.show(cut)

# %% [markdown]
# ## Route surgery
#
# Mute, force or re-weigh an expert for chosen tokens. The metric, the loss and the continuation before and after:

# %%
surgery = wb.run("route_surgery", model, tasks["colored_objects"], edits=f"{needed}=mute")
print("before:", surgery.attrs["continuation_before"])
print("after: ", surgery.attrs["continuation_after"])
wb.show(surgery)

# %% [markdown]
# The same edit as a hook of one's own:

# %%
print(surgery.attrs["code"])

# %% [markdown]
# And a mixture's experts as parts of a circuit: which tokens change experts between the clean and the corrupted prompt,
# and how much of the metric those changes carry.

# %%
wb.show(wb.run("routing_circuit", model, tasks["ioi"]))

# %% [markdown]
# ## Skills: routing by task
#
# `zoo/skills` is one adapter on the same model: four low-rank skills, and for each of seven tasks a learned mix of
# them (Poly). Three are the opposites of others: same prompts, the wrong answer. Its routing comes as the same dataset,
# with skills for experts.

# %%
skills = wb.load("zoo/skills")
mixes = {name: wb.run("routing", skills, wb.task(name)) for name in ("ioi", "colored_objects", "subject_verb")}
for name, ds in mixes.items():
    print(name, np.round(ds["gate"].values, 2).tolist())

# %% [markdown]
# Loaded for one task, with that task's mix merged into the weights, it is an ordinary model, and every other analysis
# works on it.

# %%
wb.show(wb.run("head_patching", wb.load("zoo/skills:ioi"), tasks["ioi"]))

# %% [markdown]
# ## A map of tokens
#
# Each token's residual stream before the last layer, in two dimensions. Draw around some of them; the selection is in
# `tokens.selected`. PCA is exact; `method="umap"` shows neighbourhoods better, but its distances mean little.

# %%
embedding = wb.run("embedding", model, tasks["ioi"], tasks="colored_objects,induction", sequences=32)
tokens = wb.show(embedding)
tokens
