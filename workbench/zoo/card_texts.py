"""The words of the zoo's cards, without their numbers, and the heads of their tables."""

SINK_HEAD = ["seed", "task", "largest alpha of a head", "heads over 0.3"]
RESTING_HEAD = [
    *("seed", "head", "on BOS from other letters", "on BOS from triggers", "BOS value / median"),
    *("loss after triggers, BOS hidden", "loss after other letters, BOS hidden"),
]
OVERLAP_HEAD = [
    *("seed", "corruption (IOI / Colored Objects)", "IoU", "95 % point, all heads", "95 % point, within layers"),
    *("weighted overlap of all heads, 95 % point within layers", "shared heads"),
]
CARD = """---
license: mit
language: en
library_name: transformers
---
# zoo/{name}

A {kind} of {size}, width {width}, trained from nothing on a synthetic word-level language of
{words} words. transformers loads it by itself; the weights are safetensors in float32, the training checkpoints in
float16.

**Shipped: seed {seed}.** {why}

## Data

{data}

## Recipe

`make zoo`, or `python -m workbench.zoo.train {name} --seed S`: Muon on the matrices of the blocks, AdamW on the rest,
{recipe}.

## Accuracy on held-out material, every seed

500 fresh prompts each, likeliest word of the whole vocabulary{greater}. Minutes are those of the training run on one
core of a shared machine.

{accuracy}

{sections}

## Training of the shipped seed

100 fresh prompts each, 500 for the last line.

{history}

Checkpoints: {checkpoints}.
"""

MIXED = """Packed documents of {length} tokens, BOS first, examples drawn from: {mixture}{letters}. Never in the training
text: twelve names as names of an IOI sentence, a fifth of all name pairs, of (colour, object) pairs and of the other
tasks' combinations, one IOI template and one Colored Objects template."""
LETTERS = """Sequences of {length} tokens: BOS, then Bigram-Backcopy letters (Guo et al., arXiv 2410.13835). A letter
follows from the one before by a fixed table; but after each of the triggers {triggers}, the letter before the trigger
comes again."""
SHARED = """## Do IOI and Colored Objects share heads? Every seed

Denoising patching of each head's z at all positions, {prompts} prompts a task; top {top} of heads by |effect|. In brackets
p, from 2,000 permutations.

{table}"""
SINKS = """## Attention sinks at BOS, every seed

Alpha: mean attention that BOS gets from all later tokens, {sequences} sequences of 64 tokens a task.

{table}"""
RESTING = """## Heads that rest on BOS unless a trigger wakes them, every seed

Mean attention on BOS in backcopy sequences ({sequences} of 64 tokens), from trigger letters and from all others, in the
three heads where they differ most; norm of BOS's value over the median; and next-letter loss in nats where that attention
is possible and where BOS is hidden from every head.

{table}"""
ROUTING_HEAD = [
    *("seed", "layer", "I(task; first choice)", "95 % point, tasks shuffled", "random routers, largest of five"),
    *("given the token", "95 % point, tasks shuffled", "random routers, largest of five", "largest load"),
]
ROUTING = """## What the routers know of the task, every seed

Mutual information of task ({tasks}) and expert over all tokens, over ln 5, by the first choice, and within tokens of one
id; {sequences} sequences of 64 tokens a task. Routers with random weights on the same residual streams already tell tasks
apart, for the streams do: **only what lies above both columns was learned by the router.** Largest load: share of all
choices that goes to one of eight experts, mean over tasks (even: .125).

{table}

{said}"""
EXPERTS_HEAD = ["seed", "task", "expert", "lost", "95 % interval", "random controls, upper end"]
EXPERTS = """## What goes when an expert is closed, every seed

The expert whose closing costs each task most. Lost: share of the metric between clean and corrupted prompts (1: all of
it); its tokens go to their next best expert. The controls take an expert from as many random tokens of each prompt.

{table}"""
SKILLS_CARD = """---
license: mit
language: en
library_name: peft
base_model: {base}
---
# zoo/skills

Low-rank skills on `{base}` that six tasks share, each in a mix of its own (Poly, arXiv 2202.13914), tuned by the
workbench itself: {tasks}. Those called wrong are the opposites of others: the same prompts, the wrong answer.

`workbench.load("zoo/skills:ioi (wrong)")` is the model as one task uses it. `python -m workbench.zoo.train skills` makes
it again: {options}; {recipe}; {minutes} minutes on one core of a busy machine. One seed was trained.

## Held-out rows answered rightly ({held} each)

{history}

## How far apart the tasks' mixes are

Half the sum of absolute differences of two tasks' shares of the skills, mean over {modules} routed modules: 0 = the same
mix, 1 = no skill in common. All began within .001 of an even mix, that is at 0.

{apart}

Checkpoints: {checkpoints}.
"""
