"""What tests of on-policy algorithms share: golden rows as rollouts, and short runs on the shipped model."""

from dataclasses import replace
from typing import Any

import lightning as L
import torch
from transformers import AutoModelForCausalLM

from lit_align.batches import Forest
from lit_align.datamodules import PromptDataModule
from lit_align.rollouts.reward_set import RewardResult

EOS = 2
LOSS = {"rtol": 1e-4, "atol": 1e-5}
GRADIENT = {"rtol": 1e-3, "atol": 1e-5}


def golden_policy(golden_models):
    return AutoModelForCausalLM.from_pretrained(golden_models / "policy", dtype=torch.float32)


def golden_rollout(rows: list[dict[str, Any]], old: str = "old_per_token_logps") -> Forest:
    """Rows of a golden batch as a rollout; rows of a group stand together."""
    prompts, groups, last = [], [], None
    for row in rows:
        if not prompts or row.get("group") is None or row["group"] != last:
            prompts.append(row["prompt_ids"])
            groups.append([])
        last = row.get("group")
        groups[-1].append(row["completion_ids"])
    forest = Forest.from_lists(prompts, groups)
    logps = torch.tensor([x for row in rows for x in row[old]])
    ended = torch.tensor([row["completion_ids"][-1] in (0, EOS) for row in rows])
    return replace(forest, completion_columns={"finished": ended}).with_token_column("old_logps", logps)


def rewarded(table, weights=None) -> RewardResult:
    table = torch.tensor([[float("nan") if x is None else x for x in row] for row in table])
    weights = torch.tensor(weights or [1.0] * table.shape[1])
    return RewardResult(table, table, weights, tuple(f"r{i}" for i in range(table.shape[1])))


def no_reward(**anything: Any) -> list[None]:
    raise AssertionError("the rewards of these rollouts are given")


def loss_and_gradients(module, experience):
    """Average loss of a minibatch of an older policy, and the gradients of all that is trained."""
    module.buffer.updates = 1
    output = module._run(experience, logging=True)
    module.observe(output)
    loss = output.total / output.weight
    loss.backward()
    return (
        loss.item(),
        {n: p.grad for n, p in module.named_parameters() if p.grad is not None},
        output.metrics,
    )


def norm(grads) -> float:
    return torch.stack([g.norm() for g in grads.values()]).norm().item()


class Watch(L.Callback):
    """Metrics of each step, and the weights after it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        metrics = {k.removeprefix("train/"): float(v) for k, v in trainer.callback_metrics.items()}
        self.steps.append(metrics)


def digest(module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


def fit(module, tmp_path, steps=4, batch_size=4, train="lit-align/manners-prompts", callbacks=(), **options):
    """A few steps on the shipped prompts; returns the trainer and what it reported."""
    watch = Watch()
    L.seed_everything(0, verbose=False)
    defaults: dict[str, Any] = {
        "max_steps": steps, "log_every_n_steps": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "default_root_dir": tmp_path, "limit_val_batches": 0,
    }  # fmt: skip
    fit_options = {k: options.pop(k) for k in ("ckpt_path", "weights_only") if k in options}
    trainer = L.Trainer(**(defaults | options), callbacks=[watch, *callbacks])
    trainer.fit(module, PromptDataModule(train=train, batch_size=batch_size), **fit_options)
    return trainer, watch.steps
