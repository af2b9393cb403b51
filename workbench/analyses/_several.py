"""What analyses of several tasks share: further tasks by name or spec, and each task's prompts in batches."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import AnalysisError
from workbench.tasks import TASKS, Prompts, Task, TaskError, make_task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model


def task_list(*tasks: Task) -> str:
    """Tasks as the keyword `tasks` of an analysis takes them, made from records or not: a JSON list of their specs."""
    return json.dumps([task.spec for task in tasks])


@dataclass(frozen=True)
class Encoded:
    """A task and its prompts for one tokenizer."""

    task: Task
    prompts: Prompts


def encoded(model: "Model", task: Task, tasks: str) -> list[Encoded]:
    """The task and the further ones, each with its prompts.

    `tasks` names them, separated by commas, each with its corruption behind a colon if that is not the family's first
    one; they take the task's own number of prompts and seed. A JSON list of specs, as `task_list` makes it, is taken as
    it is. Empty, it stands for every other shipped task whose words this tokenizer has.

    Raises:
        AnalysisError: when there is no second task, or one is there twice.
        TaskError: when the prompts of a task that was named do not fit the tokenizer.
    """
    read = [Encoded(each, each.encode(model.tokenizer, bos=model.bos)) for each in (task, *_named(task, tasks))]
    if not tasks.strip():
        read += list(_shipped(model, task))
    titles = [each.task.title for each in read]
    if len(read) < 2:
        raise AnalysisError("This compares tasks, and there is only one; name others in `tasks`.")
    if twice := [title for title in titles if titles.count(title) > 1]:
        raise AnalysisError(f"The task '{twice[0]}' is there twice; name each once, with its corruption if it matters.")
    return read


def _named(task: Task, tasks: str) -> list[Task]:
    if tasks.strip().startswith("["):
        return _specified(tasks)
    parts = [part.strip().partition(":") for part in tasks.split(",") if part.strip()]
    return [
        make_task(name.strip(), n=task.n, seed=task.seed, corruption=kind.strip() or None) for name, _, kind in parts
    ]


def _specified(tasks: str) -> list[Task]:
    try:
        return [Task.from_spec(spec) for spec in json.loads(tasks)]
    except (ValueError, TypeError, KeyError) as error:
        raise AnalysisError(
            f"`tasks` begins as a JSON list but is none of tasks ({error}); make it with task_list(...)."
        ) from None


def _shipped(model: "Model", task: Task) -> Iterator[Encoded]:
    for name in TASKS:
        other = make_task(name, n=task.n, seed=task.seed)
        if name == task.name:
            continue
        try:
            yield Encoded(other, other.encode(model.tokenizer, bos=model.bos))
        except TaskError:
            continue


def check_differentiable(model: "Model") -> None:
    """Refuse a model whose loss has no one gradient at its raw weights.

    Raises:
        AnalysisError: for folded weights, or an adapter that runs only when it is told the task.
    """
    from workbench.models.division import ROUTING
    from workbench.models.parameters import adapter_parameters

    if model.plain is None:
        raise AnalysisError("Gradients are taken at raw weights; load the model with fold=False.")
    if ROUTING in adapter_parameters(model.plain).values():
        raise AnalysisError(
            f"The adapter of '{model.reference}' has other weights for every task; load it with route=<task>, which "
            "merges those of one."
        )


@dataclass(frozen=True)
class Rows:
    """Prompts as one tensor: tokens int64 [row, pos], padded behind END; END's place [row]; each row's answers."""

    tokens: np.ndarray
    ends: np.ndarray
    answers: list[np.ndarray]


def rows_of(prompts: Prompts, rows: np.ndarray) -> Rows:
    """Some prompts. Padding stands behind END, where a causal model does not see it."""
    tokens = np.zeros((len(rows), max(len(prompts.clean[i]) for i in rows)), dtype=np.int64)
    for row, i in enumerate(rows):
        tokens[row, : len(prompts.clean[i])] = prompts.clean[i]
    return Rows(tokens, prompts.lengths[rows] - 1, [prompts.answers[i] for i in rows])


def batches_of(prompts: Prompts, count: int) -> list[np.ndarray]:
    """The prompts in `count` batches of one size, in their order; a remainder is left out.

    Raises:
        AnalysisError: when there are fewer prompts than batches.
    """
    size = len(prompts) // count
    if size < 1:
        raise AnalysisError(f"{count} batches need as many prompts, but a task has {len(prompts)}; ask for more (n).")
    return [np.arange(batch * size, (batch + 1) * size) for batch in range(count)]


def answer_losses(module: Any, rows: Rows) -> "torch.Tensor":
    """-log p(answer | prompt) in nats [row] at END, to be differentiated; of several right answers, of any of them."""
    import torch

    from workbench.models.ends import run_base, unembed

    device = next(module.parameters()).device
    hidden = run_base(module, torch.as_tensor(rows.tokens, device=device)).last_hidden_state
    ends = torch.as_tensor(rows.ends, device=device)
    likely = unembed(module, hidden[torch.arange(len(ends), device=device), ends]).log_softmax(-1)
    right = [one[torch.as_tensor(a, device=device)] for one, a in zip(likely, rows.answers, strict=True)]
    return -torch.stack([values.logsumexp(0) for values in right])


def said_of(read: list[Encoded]) -> dict[str, Any]:
    """Attributes of a result of several tasks."""
    titles = [each.task.title for each in read]
    return {"task": json.dumps(titles), "metric_name": "-log p(answer) in nats at END"}
