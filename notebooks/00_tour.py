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
# # A tour: what do two tasks share?
#
# A small GPT-2, trained on a synthetic language, solves several tasks. This notebook traces two of them, asks which
# attention heads both use, and looks at where attention sinks form. It needs no GPU and no internet, and takes about a
# minute.

# %%
import workbench as wb

model = wb.load("zoo/tasks")
model

# %% [markdown]
# Every load makes a **trust card**: the numbers of the traced model were compared with those of the original module,
# an edit was seen to take effect, and so on. Red would block tracing and say what to do.
#
# ## Two tasks
#
# *Indirect object identification* asks who receives a gift; *Colored Objects* asks for the colour of one of three
# objects. Each clean prompt has a corrupted twin of the same length. The corruption is part of what is measured, so it
# is named everywhere: `value_swap` replaces the answer itself by another name or colour.

# %%
ioi = wb.task("ioi", corruption="value_swap", n=64)
objects = wb.task("colored_objects", corruption="value_swap", n=64)

for task in (ioi, objects):
    example = task.examples(1)[0]
    print(f"{task.title}\n  clean      {' '.join(example.clean)} -> {example.answers[0]}")
    print(f"  corrupted  {' '.join(example.corrupted)} -> {example.wrongs[0]}")

# %% [markdown]
# ## Which heads carry each task
#
# Activation patching, denoising: run the corrupted prompt, put one head's output back to its clean value, and see what
# share of the clean answer returns (0 = corrupted run, 1 = clean run, never clipped). Every effect has a bootstrap
# interval over prompts. The result is an `xarray.Dataset` that says how it was made.

# %%
traced_ioi = wb.run("head_patching", model, ioi)
traced_objects = wb.run("head_patching", model, objects)
traced_ioi

# %% [markdown]
# ## What they share
#
# `overlap` ranks heads by |effect| and compares the strongest ones, against two nulls: heads shuffled over the whole
# model, and shuffled within their layers (the stricter one: it keeps how deep each task works).
# Click a head, or move with the arrow keys and press Enter.

# %%
shared = wb.overlap(traced_ioi, traced_objects, top=0.125)
grid = wb.show(shared)
grid

# %%
at = shared.sel(size=shared.attrs["chosen"])
print(f"intersection over union of the top {shared.attrs['chosen']} heads: {float(at.iou):.2f}")
print(f"95 % point: {float(at.iou_null_high):.2f} among all heads, {float(at.iou_within_high):.2f} within layers")

# %%
wb.show(shared, "overlap_curve")

# %% [markdown]
# ### The same tasks, another corruption
#
# Corrupt the *question* instead of the answer (the second name in IOI, the object asked for in Colored Objects), and
# the heads that find out which answer is wanted come forward. In this model the overlap falls to what chance gives:
# whether circuits are shared depends on what was asked.

# %%
question = wb.overlap(
    wb.run("head_patching", model, wb.task("ioi", corruption="s2_to_io")),
    wb.run("head_patching", model, wb.task("colored_objects", corruption="query")),
    top=0.125,
)
wb.show(question)

# %% [markdown]
# ## Where a head looks
#
# The strongest shared head, on the first prompt. The last row is the query that predicts the answer; click another row,
# or a token, to see where that one looks.

# %%
least = abs(shared.effect).min("task")
best = {dim: int(index) for dim, index in least.argmax(["layer", "head"]).items()}
pattern = wb.run("attention", model, ioi, prompt=0)
wb.show(pattern, layer=best["layer"], head=best["head"])

# %% [markdown]
# ## Where attention sinks form
#
# alpha is the mean attention a token gets from all later queries; a head with alpha above 0.3 on BOS parks its
# attention there.

# %%
sinks = wb.run("sink_scores", model, ioi)
wb.show(sinks)

# %%
wb.show(sinks, "sink_map")

# %% [markdown]
# ## When did the shared heads appear?
#
# A checkpoint of the same model is one more coordinate of the same dataset.

# %%
from workbench.models.reference import checkpoints

steps = checkpoints("zoo/tasks")
history = {}
for step in steps[1:]:
    early = wb.load(f"zoo/tasks@{step}")
    history[step] = wb.run("head_patching", early, ioi)
wb.show(wb.concat(history, dim="checkpoint"))

# %% [markdown]
# ## Your own pairs, and again from the result
#
# `Task.from_records` takes clean and corrupted prompts with an answer and a wrong answer; `rerun` computes a result
# again from its own attributes and says how far it is off.

# %%
names = [("Mary", "John", "Tom"), ("Dan", "Anna", "Kate"), ("Lucy", "Peter", "Emma"), ("Bob", "Amy", "Leo")]
mine = wb.Task.from_records(
    [
        {
            "clean": f"When {a} and {b} went to the park , {a} gave a book to",
            "corrupted": f"When {a} and {c} went to the park , {a} gave a book to",
            "answer": f" {b}",
            "wrong": f" {c}",
        }
        for a, b, c in names
    ]
)
wb.show(wb.run("head_patching", model, mine))

# %%
again, difference = wb.rerun(traced_ioi)
print(f"largest difference: {difference:.1e}")
