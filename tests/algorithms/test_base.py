"""No cut of the batch changes the gradient, and a checkpoint holds what was trained."""

import math

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_align.algorithms.dpo import DPO
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.reward import RewardModel
from lit_align.algorithms.sft import SFT
from lit_align.batches import Forest
from lit_align.scoring.references import FromPath


def pairs(count: int = 8) -> Forest:
    """Pairs of very uneven lengths."""
    generator = torch.Generator().manual_seed(0)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(1, longest, (1,), generator=generator))
        return torch.randint(4, 96, (length,), generator=generator).tolist()

    return Forest.from_lists([ids(12) for _ in range(count)], [[ids(20), ids(20)] for _ in range(count)])


def make(name: str, golden_models, average: str = "window"):
    if name == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(golden_models / "reward", num_labels=1)
        return RewardModel(model, center_rewards_coefficient=0.1, loss_average=average)
    model = AutoModelForCausalLM.from_pretrained(golden_models / "policy")
    if name == "sft":
        return SFT(model, loss_average=average)
    reference = FromPath(str(golden_models / "reference"))
    return DPO(model, reference=reference, loss={"sigmoid": 1.0, "sft": 0.5}, loss_average=average)


CUTS = {"1x8": [range(8)], "8x1": [[i] for i in range(8)], "uneven": [[0, 1, 2, 3, 4], [5], [6, 7]]}


@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_no_cut_of_the_window_changes_the_gradient(golden_models, one_step, name):
    batch = pairs()
    runs = {
        cut: one_step(make(name, golden_models), [batch.select(list(rows)) for rows in parts])
        for cut, parts in CUTS.items()
    }
    whole = runs.pop("1x8")
    largest = max(g.abs().max() for g in whole.grads.values())
    for cut, run in runs.items():
        for key, grad in whole.grads.items():
            assert (run.grads[key] - grad).abs().max() <= 1e-6 * max(1, largest), (cut, key)
        for key, value in whole.metrics.items():
            assert run.metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-6), (cut, key)


@pytest.mark.parametrize("backward_passes", [1, 8])
def test_a_fit_that_was_cut_off_inside_a_window_leaves_nothing_to_the_next(
    golden_models, one_step, backward_passes
):
    """As in a notebook: interrupted, and begun again with the module in memory."""

    class CutOff(L.Callback):
        left = backward_passes

        def on_after_backward(self, trainer, module):
            self.left -= 1
            if not self.left:
                raise RuntimeError("cut off")

    def begun() -> SFT:
        optim = OptimConfig(micro_batch_tokens=40)
        return SFT(AutoModelForCausalLM.from_pretrained(golden_models / "policy"), optim=optim)

    whole, module = one_step(begun(), [pairs(1)]), begun()
    with pytest.raises(RuntimeError, match="cut off"):
        one_step(module, [pairs(), pairs()], callbacks=[CutOff()])
    again = one_step(module, [pairs(1)])
    for key, grad in whole.grads.items():
        torch.testing.assert_close(again.grads[key], grad, rtol=1e-4, atol=1e-6)
    assert int(module.tokens_seen) == pairs(1).num_tokens
    assert again.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-5)


def test_micro_batch_means_are_an_explicit_choice(golden_models, one_step):
    """Mean of the means of two micro-batches, which is not the mean over their tokens."""
    parts = [pairs().select([0, 1, 2]), pairs().select([3])]
    module = make("sft", golden_models, average="micro_batch")
    with torch.no_grad():
        means = [-(module.score(p).logps.sum() / p.weights.sum()).item() for p in parts]
    own = one_step(make("sft", golden_models, average="micro_batch"), parts)
    window = one_step(make("sft", golden_models), parts)
    halves = [one_step(make("sft", golden_models), [p]) for p in parts]
    for key, grad in own.grads.items():
        torch.testing.assert_close(
            grad, (halves[0].grads[key] + halves[1].grads[key]) / 2, rtol=1e-4, atol=1e-6
        )
    assert own.grad_norm != pytest.approx(window.grad_norm, rel=1e-3)
    assert means[0] != pytest.approx(means[1], rel=1e-3)


def test_clipping_sees_the_average(golden_models, one_step):
    plain = one_step(make("sft", golden_models), [pairs()])
    assert plain.grad_norm > 0.1
    clipped = {}

    class After(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            clipped.update(
                {n: p.grad.norm() for n, p in module.policy.named_parameters() if p.grad is not None}
            )

    one_step(make("sft", golden_models), [pairs()], gradient_clip_val=0.05, callbacks=[After()])
    assert torch.stack(list(clipped.values())).norm().item() == pytest.approx(0.05, rel=1e-3)


def test_a_window_without_weight_changes_nothing(golden_models, one_step):
    batch = Forest.from_lists([[5, 6]], [[[7, 8]]], weights=[[[0.0, 0.0]]])
    run = one_step(make("sft", golden_models), [batch])
    assert all(float(g.abs().max()) == 0 for g in run.grads.values())
    assert run.metrics == {"num_tokens": 4}


def fit(module, batches, tmp_path, **options):
    trainer = L.Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": tmp_path,
            "log_every_n_steps": 1,
            **options,
        }
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def test_a_short_last_window_is_averaged_over_what_it_has(golden_models, tmp_path):
    """3 micro-batches with windows of 2: the last step's gradient is that of its one micro-batch."""
    parts = [pairs().select([0]), pairs().select([1]), pairs().select([2])]
    kept = []

    class Keep(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            kept.append({n: p.grad.clone() for n, p in module.policy.named_parameters()})

    module = make("sft", golden_models)
    module.lr = 0.0
    fit(module, parts, tmp_path, accumulate_grad_batches=2, callbacks=[Keep()])
    alone = make("sft", golden_models)
    alone.lr = 0.0
    fit(alone, parts[2:], tmp_path, callbacks=[Keep()])
    assert len(kept) == 3
    for key, grad in kept[2].items():
        torch.testing.assert_close(kept[1][key], grad, rtol=1e-5, atol=1e-7)


def test_tokens_are_counted_and_survive_a_resume(golden_models, tmp_path):
    parts = [pairs().select([i]) for i in range(4)]
    module = make("dpo", golden_models)
    trainer = fit(module, parts[:2], tmp_path)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    assert int(module.tokens_seen) == sum(p.num_tokens for p in parts[:2])
    again = make("dpo", golden_models)
    resumed = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    resumed.fit(
        again, DataLoader(parts[2:], batch_size=None), ckpt_path=tmp_path / "two.ckpt", weights_only=True
    )
    assert int(again.tokens_seen) == sum(p.num_tokens for p in parts)


def test_a_checkpoint_holds_what_was_trained_and_plain_data(golden_models, tmp_path):
    module = make("dpo", golden_models)
    trainer = fit(module, [pairs()], tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert not [k for k in saved["state_dict"] if k.startswith("reference.")]
    assert "tokens_seen" in saved["state_dict"]
    assert saved["hyper_parameters"]["beta"] == 0.1
    assert saved["hyper_parameters"]["reference"]["class_path"].endswith("FromPath")


def test_a_foreign_checkpoint_is_refused_by_name(golden_models, tmp_path):
    module = make("sft", golden_models)
    trainer = fit(module, [pairs()], tmp_path)
    trainer.save_checkpoint(tmp_path / "sft.ckpt")
    other = make("reward", golden_models)
    with pytest.raises(
        ValueError, match=r"missing policy\.model\.score\.weight; foreign policy\.model\.lm_head"
    ):
        other.on_load_checkpoint(torch.load(tmp_path / "sft.ckpt", weights_only=True))


def test_load_from_checkpoint_needs_nothing_but_the_file(tmp_path):
    module = SFT("lit-align/tiny", optim=OptimConfig(schedule="constant"), lr=1e-2)
    trainer = fit(module, [pairs()], tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = SFT.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert again.optim.schedule == "constant"
    assert again.lr == 1e-2
    with torch.no_grad():
        torch.testing.assert_close(again.eval().score(pairs()).logps, module.eval().score(pairs()).logps)


def test_logs_only_every_n_steps(golden_models, tmp_path):
    logged = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            logged.append(
                "train/loss" in trainer.callback_metrics and trainer.callback_metrics["train/loss"].item()
            )

    module = make("sft", golden_models)
    module.lr = 0.0
    parts = [pairs().select([i]) for i in range(4)]
    fit(module, parts, tmp_path, log_every_n_steps=2, callbacks=[Watch()])
    assert logged[0] is False
    assert logged[1] == logged[2] != logged[3]
    with torch.no_grad():
        sums = [(-(module.score(p).logps).sum().item(), float(p.weights.sum())) for p in parts[:2]]
    assert logged[1] == pytest.approx(sum(s for s, _ in sums) / sum(w for _, w in sums), rel=1e-5)


def test_validation_averages_over_rows_not_batches(golden_models, tmp_path):
    parts = [pairs().select([0, 1, 2, 3, 4, 5, 6]), pairs().select([7])]
    module = make("dpo", golden_models)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    cut = trainer.validate(module, DataLoader(parts, batch_size=None), verbose=False)[0]
    whole = trainer.validate(module, DataLoader([pairs()], batch_size=None), verbose=False)[0]
    assert cut == pytest.approx(whole, rel=1e-5)
    assert math.isfinite(cut["val/loss"])


def test_no_policy_is_an_error():
    with pytest.raises(ValueError, match="no policy"):
        SFT()


def test_gradients_kept_elsewhere_are_an_error(golden_models, one_step):
    """A strategy that keeps gradients to itself must not step along an unaveraged sum."""
    module = make("sft", golden_models)
    average = module._average_gradients
    module._average_gradients = lambda optimizer: (optimizer.zero_grad(), average(optimizer))
    with pytest.raises(RuntimeError, match="no gradients to average"):
        one_step(module, [pairs()])


class Stream(IterableDataset):
    """Batches, and nobody knows how many."""

    def __iter__(self):
        return iter([pairs(2)] * 3)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_streamed_data_without_a_last_step(golden_models, schedule):
    """The learning rate would fall to nothing after the first step."""
    model = AutoModelForCausalLM.from_pretrained(golden_models / "policy")
    module = SFT(model, lr=1e-3, optim=OptimConfig(schedule=schedule))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if schedule != "constant":
        with pytest.raises(ValueError, match="give the trainer max_steps"):
            trainer.fit(module, DataLoader(Stream(), batch_size=None))
        return
    trainer.fit(module, DataLoader(Stream(), batch_size=None))
    assert trainer.global_step == 3
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-3
