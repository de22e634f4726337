"""AdamW for an embedding whose gradient has rows for the tokens of a step only.

Rows that never had a gradient have moments of zero, and AdamW without weight decay leaves them where they
are. The others move at every step, with a gradient or without. So a step has to look at the rows that ever
had one, and its numbers are those of AdamW (arXiv 1711.05101, algorithm 2) on the whole matrix.
"""

import mmap
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW


class RowAdamW(AdamW):
    """``torch.optim.AdamW(fused=True)``, with its state, which also takes sparse gradients of matrices."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: makes the gradients, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = [
            (group, p, p.grad.coalesce())
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and p.grad.is_sparse
        ]
        for _, p, _ in sparse:
            p.grad = None
        super().step()
        for group, p, grad in sparse:
            self._move_rows(group, p, grad)
            p.grad = grad
        return loss

    def _move_rows(self, group: dict[str, Any], p: Tensor, grad: Tensor) -> None:
        state = self.state[p]
        moving = self._moving(p)
        found = grad.indices()[0]
        moving[found] = True
        rows = moving.nonzero()[:, 0]
        whole = [p, state["exp_avg"], state["exp_avg_sq"]]
        if 2 * len(rows) > len(p):
            # To pick the rows out costs as much as the step itself.
            parts, values = whole, grad.to_dense()
        else:
            parts = [t[rows] for t in whole]
            values = torch.zeros_like(parts[0])
            values[torch.searchsorted(rows, found)] = grad.values()
        state["step"] += 1
        torch._fused_adamw_(
            parts[:1],
            [values],
            parts[1:2],
            parts[2:],
            [],
            [state["step"]],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=None,
        )
        if parts is not whole:
            for t, part in zip(whole, parts, strict=True):
                t[rows] = part

    def _moving(self, p: Tensor) -> Tensor:
        known: dict[Tensor, tuple[Tensor, Tensor]] = self.__dict__.setdefault("_known", {})
        state = self.state[p]
        if not state:
            state |= {"step": p.new_zeros((), dtype=torch.float32)}
            state |= {"exp_avg": _zeros(p), "exp_avg_sq": _zeros(p)}
            known[p] = (state["exp_avg"], torch.zeros(len(p), dtype=torch.bool, device=p.device))
        elif p not in known or known[p][0] is not state["exp_avg"]:
            # Of a state that was loaded the moments tell.
            known[p] = (state["exp_avg"], state["exp_avg"].any(1) | state["exp_avg_sq"].any(1))
        return known[p][1]


def make_sparse(module: nn.Module, weight_decay: float, extra: Iterable[str]) -> None:
    """Let the trainable embeddings of a module have sparse gradients.

    Args:
        module: whose embeddings they are.
        weight_decay: of the optimiser.
        extra: names of its further arguments.

    Raises:
        ValueError: the numbers would not be those of AdamW on the whole matrix, or there is nothing to gain.
    """
    if weight_decay:
        raise ValueError(
            f"sparse_embedding with weight_decay {weight_decay}: every row shrinks at every step. "
            "Leave one of the two out"
        )
    if unknown := sorted(set(extra) - {"betas", "eps"}):
        raise ValueError(f"sparse_embedding knows betas and eps, and not {', '.join(unknown)}: leave one out")
    found = [m for m in module.modules() if type(m) is nn.Embedding and m.weight.requires_grad]
    if not found:
        raise ValueError("sparse_embedding: no plain embedding is trained, so leave it out")
    owners = [p for m in module.modules() for p in m._parameters.values()]
    for embedding in found:
        if sum(p is embedding.weight for p in owners) > 1:
            raise ValueError(
                "sparse_embedding: the embedding is tied to another layer, whose gradient has all rows. "
                "Leave it out"
            )
        embedding.sparse = True


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer that would want the whole gradient.

    Raises:
        ValueError: several processes, float16, or clipping by value.
    """
    algorithm = trainer.gradient_clip_algorithm
    reasons = {
        f"{trainer.world_size} processes, which exchange whole gradients": trainer.world_size > 1,
        f"precision {trainer.precision}, whose scaler looks at whole gradients": trainer.precision[:2]
        == "16",
        "clipping by value": algorithm is not None and algorithm != "norm",
    }
    for reason, found in reasons.items():
        if found:
            raise ValueError(f"sparse_embedding does not go with {reason}: leave it out")


def _zeros(like: Tensor) -> Tensor:
    if not like.is_cpu or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros_like(like)
    # The system zeroes a page when it is touched, and most rows never are.
    memory = mmap.mmap(-1, like.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)
