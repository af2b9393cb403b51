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
# # Circuit reuse, with its controls
#
# Do two tasks use the same circuit? This notebook takes the question apart on a small trained model: heads, paths,
# edges, what is left when everything else is ablated, what one task loses without the other's heads, when in training
# the shared heads appear, and an experiment that repairs one task with a head found on the other. The questions are
# those of *Circuit Component Reuse Across Tasks in Transformer Language Models* (arXiv 2310.08744). On a CPU it takes
# about two minutes.

# %%
import pandas as pd

import workbench as wb
from workbench.models.reference import checkpoints

model = wb.load("zoo/tasks")
ioi = wb.task("ioi", corruption="value_swap", n=64)
objects = wb.task("colored_objects", corruption="value_swap", n=64)
model

# %% [markdown]
# ## Heads
#
# Denoising patching of every head, in both tasks. All later layers are recomputed exactly, but nothing else is: the
# result says by which way it was computed.

# %%
heads_ioi = wb.run("head_patching", model, ioi)
heads_objects = wb.run("head_patching", model, objects)
print(heads_ioi.attrs["way"])
shared = wb.overlap(heads_ioi, heads_objects, top=0.125)
head_maps = wb.show(shared)
head_maps

# %% [markdown]
# The overlap stands between two lines. Below it is chance (heads shuffled over the model, or within their layers).
# Above it is a ceiling: how much two halves of *one* task's own prompts agree.

# %%
wb.show(shared, "overlap_curve")

# %% [markdown]
# ## Paths
#
# Patching a head changes everything after it. Path patching corrupts one head's message to chosen receivers only, with
# every other head held at its clean output. Stage one asks who writes to the logits at the last token; stage two, who
# shapes the queries of the strongest of those heads. The corruption here repeats the *other* name (`s2_to_io`), so
# that it is the identity of the repeated name that is traced.

# %%
repeated = wb.task("ioi", corruption="s2_to_io", n=64)
paths = wb.run("path_patching", model, repeated, stages="logits@END; q@END", top=0.05)
wb.show(paths)

# %% [markdown]
# ## Edges
#
# Edge attribution (EAP with integrated gradients) scores every edge at once, to first order. The graph shows the
# strongest; drag the number of edges, click a node to see what it reads and writes. The graph and the head maps above
# are linked: a head that is picked in one is picked in all.

# %%
edges_ioi = wb.run("edge_attribution", model, ioi)
edges_objects = wb.run("edge_attribution", model, objects)
graph = wb.show(edges_ioi, "circuit_graph", limit=40)
wb.link(head_maps, graph)
graph

# %% [markdown]
# An approximation needs a witness. The strongest edges were also patched one by one, exactly:

# %%
wb.show(edges_ioi, "exact_scatter")

# %% [markdown]
# ### Is the circuit enough?
#
# Now everything outside the circuit is really ablated (each edge outside carries its value from the corrupted run), for
# circuits of every size. The grey band is random circuits with as many edges of each kind. The scores come from other
# prompts than those measured here.

# %%
faithful = wb.run("faithfulness", model, ioi, draws=10)
wb.show(faithful)

# %% [markdown]
# ## What is shared, and what each part causes
#
# Overlap alone misleads: two circuits can overlap because everything does. So beside it stands the cross-ablation
# matrix. Each task's heads, those both share and those only one has are ablated, and each task is measured, next to
# random heads of the same layers.

# %%
sets = wb.circuit_sets(shared)
print(sets)
lost = {task.title: wb.run("ablation", model, task, sets=sets) for task in (ioi, objects)}
wb.show(wb.concat(lost, dim="measured"))

# %%
shared_edges = wb.overlap(edges_ioi, edges_objects, top=0.05, draws=500)
wb.show(shared_edges, "overlap_matrix")

# %% [markdown]
# The edges that both circuits hold:

# %%
wb.show(shared_edges, "circuit_graph")

# %% [markdown]
# ## What the heads do
#
# Each head against the usual tests: where it looks on repeated random tokens, whether it copies the answer, what it
# sends to the movers' queries.

# %%
roles = wb.run("head_roles", model, repeated)
wb.show(roles)

# %% [markdown]
# ## When the shared heads appear
#
# The same two traces at every checkpoint that is kept with the model.

# %%
steps = {}
for step in checkpoints("zoo/tasks"):
    reference = f"zoo/tasks@{step}"
    steps[step] = wb.overlap(*(wb.run("head_patching", reference, task) for task in (ioi, objects)), draws=500)
wb.show(wb.concat(steps, dim="checkpoint"))

# %% [markdown]
# ## The repair experiment
#
# In the paper, a task that a model does badly is repaired by heads found on another task: their attention at the last
# token is set to the *wrong* answers, which they then suppress. Our final model does both tasks perfectly, so there is
# nothing to repair; but earlier in training it does not. At step 1,500, which head does the work of telling the names
# apart in IOI?

# %%
early = wb.load("zoo/tasks@1500")
early_paths = wb.run("path_patching", early, repeated)
effect = early_paths["effect"].sel(receiver="logits@END")
found = abs(effect).argmax(["layer", "head"])
inhibitor = f"L{int(found['layer'])}H{int(found['head'])}"
print(f"{inhibitor}: corrupting its path to the logits loses {float(effect[found]):.0%} of the task")

# %% [markdown]
# Where does that head look in a Colored Objects prompt, at the last token?

# %%
looking = wb.run("attention", early, objects)
editor = wb.show(looking, "attention_row", heads=inhibitor)
editor

# %% [markdown]
# Clicking tokens in the editor makes an edit (`editor.parts`). The experiment itself names tokens by what they are, so
# that the same edit holds for every prompt: half of the head's attention on each of the two colours that were *not*
# asked for. The control does the same to random other heads of the same layer. Before anything is believed, each
# edited head's output is checked to be the mixture that was asked for.

# %%
question = wb.task("colored_objects", n=256)
weights = "color_other_1=1, color_other_2=1"
repaired = wb.run("repair", early, question, heads=inhibitor, weights=weights, draws=40)
wb.show(repaired)

# %%
before, after = (float(value) for value in repaired["accuracy"])
control = repaired["accuracy_random"]
outside = after > float(control.max())
print(
    f"accuracy {before:.2f} -> {after:.2f} with {inhibitor} edited; random heads give {float(control.min()):.2f} to "
    f"{float(control.max()):.2f} (p = {repaired.attrs['p']:.3f}).\n"
    f"The effect lies {'outside' if outside else 'inside'} its random-head control; "
    f"{repaired.attrs['mended']} prompts turned right and {repaired.attrs['broken']} turned wrong.\n"
    f"mean logit difference {float(repaired['metric'][0]):.2f} -> {float(repaired['metric'][1]):.2f}; random heads "
    f"{float(repaired['metric_random'].min()):.2f} to {float(repaired['metric_random'].max()):.2f}"
)

# %% [markdown]
# And the same edit over training, with its control. What an edit does depends on the model it is made in: by the end
# the head is needed where it looks, and the same edit does harm.

# %%
rows, fewer = {}, wb.task("colored_objects", n=64)
for step in checkpoints("zoo/tasks")[1:]:
    ds = wb.run("repair", f"zoo/tasks@{step}", fewer, heads=inhibitor, weights=weights, draws=20)
    drawn = ds["accuracy_random"].values
    rows[step] = [*ds["accuracy"].values, drawn.min(), drawn.max(), ds.attrs["p"]]
pd.DataFrame(rows, index=["unchanged", "edited", "random, lowest", "random, highest", "p"]).T.round(3)

# %% [markdown]
# ## To go on
#
# Circuits can be exchanged with the Mechanistic Interpretability Benchmark: `workbench.models.circuit_file` reads and
# writes its JSON files and their tensors, and `wb.run("faithfulness", ..., circuit="their.json")` measures them here.
# The next notebook asks the same questions of GPT-2 Medium. The dashboard (`make app`, *Circuits*) shows all of this
# without code.
