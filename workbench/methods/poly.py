"""Skills shared by all tasks and mixed by each in its own way: Poly, and with several heads MHR."""

from typing import TYPE_CHECKING, Any

from workbench.methods._base import Attached, linear_names, method, saves, with_adapter

if TYPE_CHECKING:
    import torch


@method(
    about="low-rank skills shared by all tasks, mixed by a task router (several heads: MHR)",
    paper="2202.13914 (Ponti et al., Polytropon); with heads > 1 2211.03831 (Caccia et al., MHR)",
    per_task=True,
)
def poly(
    module: Any, tasks: list[str], *, r: int = 8, skills: int = 4, heads: int = 1, router_rate: float = 10.0
) -> Attached:
    """Train `skills` low-rank adapters and each task's weights of them, which learn `router_rate` times as fast."""
    from peft import PolyConfig

    names = linear_names(module, plain_only=True)
    config = PolyConfig(
        r=r, n_tasks=len(tasks), n_skills=skills, n_splits=heads, target_modules=names, task_type="CAUSAL_LM"
    )
    tuned = with_adapter(module, config)

    def inputs(rows: "torch.Tensor") -> dict[str, Any]:
        return {"task_ids": rows}

    return Attached(tuned, saves(tuned), inputs, rates={"module_logits": router_rate})
