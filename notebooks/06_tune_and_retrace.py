# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Trace, tune, trace again
#
# The loop this workbench is for: look at a model, fine-tune it on several tasks, and see what that changed in its
# circuits and its answers. Everything here runs on a laptop's processor in a few minutes.

# %%
import workbench as wb

TASKS = ["ioi", {"name": "subject_verb", "target": "wrong"}, "colored_objects"]

# %% [markdown]
# ## Ask first what it takes
#
# A fine-tune is plain data: this mapping, or the same lines in a YAML file for `workbench tune`. One of the three tasks
# is taught the *wrong* verb form, so there is something to learn, and something to lose.

# %%
spec = {
    "model": "zoo/tasks",
    "tasks": TASKS,
    "method": "lora",
    "options": {"r": 4},
    "aggregator": "mean",
    "steps": 60,
    "batch": 24,
    "learning_rate": 3e-3,
    "checkpoint": 30,
    "telemetry": {"sink_scores": {"length": 32, "sequences": 4}},
    "telemetry_every": 20,
}
cost = wb.estimate(spec)
print(f"{cost.trained:,} of {cost.parameters:,} parameters, {cost.memory / 2**20:.0f} MiB, about {cost.seconds:.0f} s")

# %% [markdown]
# ## Tune
#
# In the engine, where it goes on while you look at it. The strong lines are smoothed in the page, by the slider above
# them; point at the curves to read their values. `wb.tune(spec)` does the same in this kernel. Stop it whenever you
# like (`job.pause()`): the same call goes on from its last checkpoint, to the same numbers.

# %%
job = wb.submit_tune(spec)
wb.follow(job)

# %% [markdown]
# Telemetry was measured along the way, on the same steps, within half the time spent training; the training result is
# bit for bit the one without it.

# %%
run = wb.Run(job.result())
sinks = run.telemetry("sink_scores", "ioi")
for step in sinks["step"].values:
    print(f"step {step}: largest alpha of the first token {float(sinks['alpha'].sel(step=step, key_pos=0).max()):.2f}")

# %% [markdown]
# ## Trace again
#
# The run is a model like any other: `run/<name>`, and `run/<name>@step`. Same prompts, same seed, before and after; a
# head counts as changed only beyond the noise of the two traces.

# %%
verbs = wb.task("subject_verb", n=64)
before = wb.run("head_patching", wb.load(f"{run.reference}@0"), verbs)
after = wb.run("head_patching", wb.load(run.reference), verbs)
changes = wb.compare(before, after)
print(f"{changes.attrs['changed']} of {changes.attrs['cells']} heads changed")
wb.show(changes)

# %%
wb.top_changes(changes, 5)

# %% [markdown]
# ## Which answers turned
#
# Negative flips were right before and are wrong now (MUSCLE, arXiv 2407.09435), with McNemar's exact test.

# %%
flips = wb.run("flips", wb.load(f"{run.reference}@0"), verbs, after=run.reference)
wb.show(flips)

# %% [markdown]
# ## Two ways, paired
#
# Same rows in the same order, another aggregator: the differences are paired, and a spec against itself gives exactly
# 0.

# %%
short = {**spec, "steps": 20, "checkpoint": 20, "telemetry": {}}
wb.show(wb.paired(short, {**short, "aggregator": "pcgrad"}, seeds=(0, 1)))
