"""NaN and infinity stop the run at their step, with the rows, and reach no checkpoint."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_align.callbacks import NanGuard
from lit_align.runtime.manifest import newest_complete


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_at_the_step(runs, what, accumulate):
    # At the second micro-batch of the third step.
    at = 3 * accumulate
    trainer = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    part = runs(
        algorithm="sft",
        trainer=trainer,
        saver={"every_n_train_steps": 1, "save_last": True},
        poison={"what": what, "at": at},
    )
    assert part.code == 1
    window = [rows for _, _, rows, step in part.batches if step == 2]
    rows = window[-1] if what == "loss" else [row for one in window for row in one]
    assert f"NonFinite: {what} not finite at optimiser step 3, from rows {rows}" in part.log
    # Nothing after the step, and nothing of it.
    assert len(part.batches) == at
    newest = newest_complete(Path(part.out) / "checkpoints")
    assert newest is not None
    state = torch.load(newest, weights_only=True)
    assert state["global_step"] == 2
    assert all(bool(t.isfinite().all()) for t in state["state_dict"].values())


def test_a_stranger_has_no_rows(runs):
    part = runs(algorithm="foreign", trainer={"max_epochs": 1}, poison={"what": "loss", "at": 2})
    assert part.code == 1
    assert "loss not finite at optimiser step 2, from batches that do not tell their rows" in part.log


@pytest.mark.parametrize(
    ("algorithm", "what", "said"),
    [
        ("sft", "states", "loss not finite at optimiser step 5"),
        ("dpo", "states", "loss not finite at optimiser step 5"),
        ("grpo", "states", "loss not finite at optimiser step 6"),
        ("grpo", "gradient", "gradient not finite at optimiser step 5"),
        ("ppo", "weights", "weights not finite at optimiser step 5"),
    ],
)
def test_wherever_it_comes_from(runs, algorithm, what, said):
    # The fifth batch of an on-policy run begins a rollout: what it samples is broken before it is learned.
    at = 6 if said.endswith("6") else 5
    saver = {"every_n_train_steps": 1}
    part = runs(algorithm=algorithm, trainer={"max_epochs": 2}, saver=saver, poison={"what": what, "at": at})
    assert part.code == 1
    assert said in part.log, part.log
    newest = newest_complete(Path(part.out) / "checkpoints")
    assert newest is not None
    state = torch.load(newest, weights_only=True)
    assert state["global_step"] == at - 1
    assert all(bool(t.isfinite().all()) for t in state["state_dict"].values())


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "rloo"])
def test_an_infinite_reward_reaches_no_weight(runs, algorithm):
    saver = {"every_n_train_steps": 1}
    part = runs(
        algorithm=algorithm, trainer={"max_epochs": 2}, saver=saver, poison={"what": "reward", "at": 5}
    )
    newest = newest_complete(Path(part.out) / "checkpoints")
    assert newest is not None
    state = torch.load(newest, weights_only=True)
    assert all(bool(t.isfinite().all()) for t in state["state_dict"].values())


def test_a_policy_that_breaks_while_it_samples_is_named(runs):
    # Each step of A2C begins with a rollout.
    saver = {"every_n_train_steps": 1}
    poison = {"what": "states", "at": 5}
    part = runs(algorithm="a2c", trainer={"max_epochs": 2}, saver=saver, poison=poison)
    assert part.code == 1
    assert "probabilities are not finite while it answers rows" in part.log
    assert part.last is not None
    assert torch.load(part.last, weights_only=True)["global_step"] == 4


def test_a_second_fit_does_not_stop_at_the_loss_of_the_first(tmp_path):
    """Cut off inside a window, whose losses were not looked at, and begun again with the same guard."""

    class Model(BoringModel):
        broken = True

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            return loss * float("nan") if self.broken else loss

        def on_train_batch_end(self, *rest):
            if self.broken:
                raise RuntimeError("cut off")

    guard, module = NanGuard(), Model()

    def fit():
        trainer = L.Trainer(
            max_steps=1, accumulate_grad_batches=2, callbacks=[guard], logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module)
        return trainer

    with pytest.raises(RuntimeError, match="cut off"):
        fit()
    module.broken = False
    assert fit().global_step == 1
