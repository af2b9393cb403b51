"""The tasks: each makes clean and corrupted prompts with a known answer. One file a task, one line here."""

from workbench.tasks import backcopy, colored_objects, greater_than, induction, ioi, subject_verb
from workbench.tasks._base import TASKS, Example, Pair, Prompts, Task, TaskError, make_task

__all__ = [
    "TASKS",
    "Example",
    "Pair",
    "Prompts",
    "Task",
    "TaskError",
    "backcopy",
    "colored_objects",
    "greater_than",
    "induction",
    "ioi",
    "make_task",
    "subject_verb",
]
