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
# # Where tasks pull together, and where apart
#
# A shared model is moved by every task's gradient. If two gradients point apart, a step for one task undoes the other.
# This notebook measures the cosine of the tasks' gradients for every part of a model, and beside each number what it
# takes to believe it: the ceiling (two batches of *one* task), the floor (unrelated gradients), and an interval.

# %%
import workbench as wb
from workbench.models.reference import checkpoints

model = wb.load("zoo/tasks")
ioi = wb.task("ioi", n=64)
OTHERS = "colored_objects,subject_verb,greater_than"

# %% [markdown]
# ## The whole model
#
# Loss: -log p(answer | prompt) in nats, mean over prompts; eight independent batches a task, all at the same weights. A
# trained model has hardly any loss left and so hardly any gradient, which is why the ceiling matters: below it nothing
# can be said.

# %%
ds = wb.run("gradient_alignment", model, ioi, tasks=OTHERS)
for task in ds["task"].values:
    at = ds.sel(module="all", task=task)
    print(f"{task}: |g| {float(at['norm']):.3g}, two batches of its own agree by {float(at['ceiling']):.2f}")
wb.show(ds)

# %% [markdown]
# ## Which part of the model
#
# The same for layers and kinds of matrices, for one pair of tasks, and for every head. Cells within the noise are
# muted.

# %%
wb.show(ds, "gradient_parts")

# %%
wb.show(ds, "gradient_layers")

# %%
wb.show(ds, "gradient_heads")

# %% [markdown]
# ## A conflict that was planted
#
# Same prompts, opposite answers: IOI and its own reverse. This pair must show as conflict, or the measure is worth
# nothing.

# %%
prompts, words = ioi.encode(model.tokenizer, bos=model.bos), model.tokenizer
records = [
    {
        "clean": text,
        "corrupted": words.decode(other[model.bos :]),
        "answer": f" {words.decode(wrong[0])}",
        "wrong": f" {words.decode(right[0])}",
    }
    for text, other, right, wrong in zip(prompts.texts, prompts.corrupted, prompts.answers, prompts.wrongs, strict=True)
]
reverse = wb.Task.from_records(records, name="reverse")
planted = wb.run("gradient_alignment", model, ioi, tasks=wb.task_list(reverse))
at = planted.sel(module="all", task=ioi.title, receiver=reverse.title)
print(f"cosine {float(at['cosine']):.2f}, 95 % {float(at['cosine_low']):.2f} to {float(at['cosine_high']):.2f}")
wb.show(planted)

# %% [markdown]
# ## Along training
#
# Early in training, when there is much to learn, gradients are large and the ceiling high.

# %%
steps = checkpoints("zoo/tasks")
along = {step: wb.run("gradient_alignment", wb.load(f"zoo/tasks@{step}"), ioi, tasks=OTHERS) for step in steps}
wb.show(wb.concat(along))

# %% [markdown]
# ## In the residual stream
#
# Rep-MTL (arXiv 2507.21049) asks the same of representations: which task's loss would change most with the stream at a
# place. Places are distances from the last token here; the band is what shuffled tasks give.

# %%
wb.show(wb.run("task_saliency", model, ioi, tasks=OTHERS))
