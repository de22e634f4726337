"""The buffer under Lightning's loop: accumulation, resume, checkpoints, validation and prediction."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.algorithms.grpo import GRPO
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.ppo import PPO
from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
from lit_align.callbacks import ExactResume
from lit_align.datamodules import PromptDataModule
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from tests.algorithms.on_policy_runs import digest, fit


def polite(completions, **rest):
    return [float("please" in text.lower()) for text in completions]


def ppo(**arguments):
    options = {
        "rewards": polite, "sampling": Sampling(10), "lr": 1e-3, "num_epochs": 2, "num_minibatches": 2,
        "kl": KLPenalty(0.1, target=1.0, horizon=20.0), "scores": ScoreShaping("normalise"),
        "optim": OptimConfig(schedule="constant"),
    }  # fmt: skip
    return PPO(**({"policy": "lit-align/tiny"} | options | arguments))


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_accumulated_minibatches_are_one_step(tmp_path):
    """Four minibatches in one window move the weights as one minibatch of everything does."""
    weights = {}
    for minibatches in (1, 4):
        module = ppo(num_epochs=1, num_minibatches=minibatches, lr=1e-4)
        fit(module, tmp_path, steps=1, batch_size=8, accumulate_grad_batches=minibatches)
        weights[minibatches] = digest(module)
    for name, one in weights[1].items():
        # Adam divides a gradient by its size, so that rounding in a tiny one is not tiny.
        torch.testing.assert_close(one, weights[4][name], rtol=0, atol=2e-5)


def test_a_window_may_hold_several_rollouts(tmp_path):
    module = ppo(num_epochs=1, num_minibatches=1)
    trainer, steps = fit(module, tmp_path, steps=2, batch_size=4, accumulate_grad_batches=3)
    assert module.rollouts == 6
    assert trainer.global_step == 2
    assert steps[-1]["val/ratio"] == 1.0


def test_a_window_that_mixes_ends_and_starts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one must divide the other"):
        fit(ppo(), tmp_path, accumulate_grad_batches=3)


def test_max_steps_ends_inside_a_rollout(tmp_path):
    module = ppo()
    trainer, _ = fit(module, tmp_path, steps=6)
    assert trainer.global_step == 6
    assert (module.rollouts, module.buffer.taken) == (2, 2)


def test_a_second_fit_begins_with_a_rollout_of_its_own(tmp_path):
    module = ppo()
    fit(module, tmp_path, steps=2)
    assert not module.buffer.empty
    trainer, _ = fit(module, tmp_path, steps=6)
    assert trainer.global_step == 6
    assert (module.rollouts, module.buffer.taken) == (1 + 2, 2)


@pytest.mark.parametrize(
    ("kind", "stop"),
    [*((kind, stop) for kind in ("ppo", "replay") for stop in (1, 2, 4, 5)), ("adapters", 2)],
)
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(tmp_path, stop, kind):
    """At 4 the rollout is used up, before that it is half used; KL control and moments are in the state."""

    def build():
        if kind == "ppo":
            return ppo()
        if kind == "adapters":
            return ppo(policy={"path": "lit-align/tiny", "lora": {"r": 2}}, critic="adapter")
        return GRPO(
            "lit-align/tiny", rewards=polite, sampling=Sampling(10), completions=2, lr=1e-3, num_epochs=2,
            num_minibatches=2, replay=4, entropy_target=1.0, optim=OptimConfig(schedule="constant"),
        )  # fmt: skip

    def save(folder):
        return ModelCheckpoint(folder, every_n_train_steps=stop, save_top_k=-1, filename="{step}")

    options = {"enable_checkpointing": True, "batch_size": 4}
    whole = build()
    fit(whole, tmp_path, steps=7, callbacks=[ExactResume()], **(options | {"enable_checkpointing": False}))
    cut = build()
    fit(cut, tmp_path, steps=stop, callbacks=[ExactResume(), save(tmp_path / "cut")], **options)
    resumed = build()
    path = tmp_path / "cut" / f"step={stop}.ckpt"
    fit(
        resumed, tmp_path, steps=7, callbacks=[ExactResume()], ckpt_path=str(path), weights_only=True,
        **(options | {"enable_checkpointing": False}),
    )  # fmt: skip
    assert same(digest(whole), digest(resumed))
    assert resumed.rollouts == whole.rollouts
    if kind != "replay":
        assert resumed.control.value == whole.control.value
        assert resumed.shaper.running == whole.shaper.running


def test_a_save_inside_a_window_goes_back_to_its_start(tmp_path):
    """The gradients of the open window are in no checkpoint, so its minibatches come again."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if index == 2:
                trainer.save_checkpoint(tmp_path / "open.ckpt")

    options = {"batch_size": 4, "accumulate_grad_batches": 2}
    whole = ppo()
    fit(whole, tmp_path, steps=4, callbacks=[ExactResume(), Save()], **options)
    state = torch.load(tmp_path / "open.ckpt", weights_only=True)["on_policy"]
    assert state["processes"][0]["buffer"]["taken"] == 2
    resumed = ppo()
    fit(
        resumed, tmp_path, steps=4, callbacks=[ExactResume()], ckpt_path=str(tmp_path / "open.ckpt"),
        weights_only=True, **options,
    )  # fmt: skip
    assert same(digest(whole), digest(resumed))


def test_a_save_in_a_window_of_several_rollouts_makes_them_again(tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if index == 4:
                trainer.save_checkpoint(tmp_path / "open.ckpt")

    options = {"batch_size": 4, "accumulate_grad_batches": 3}
    build = {"num_epochs": 1, "num_minibatches": 1}
    whole = ppo(**build)
    fit(whole, tmp_path, steps=3, callbacks=[ExactResume(), Save()], **options)
    state = torch.load(tmp_path / "open.ckpt", weights_only=True)["on_policy"]
    assert state["rollouts"] == 3
    assert state["processes"][0]["buffer"] == {}
    resumed = ppo(**build)
    fit(
        resumed, tmp_path, steps=3, callbacks=[ExactResume()], ckpt_path=str(tmp_path / "open.ckpt"),
        weights_only=True, **options,
    )  # fmt: skip
    assert same(digest(whole), digest(resumed))


def test_the_same_seed_gives_the_same_run(tmp_path):
    runs = []
    for _ in range(2):
        module = ppo()
        fit(module, tmp_path, steps=5)
        runs.append(digest(module))
    assert same(*runs)


def test_batches_that_do_not_come_again_are_noticed(tmp_path):
    from torch.utils.data import DataLoader

    from lit_align.batches import Forest

    batches = [Forest.from_lists([[5 + i, 6]], [[]], rows=[i]) for i in range(4)]
    module = ppo(num_minibatches=1)
    trainer = L.Trainer(
        max_steps=4, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        default_root_dir=tmp_path, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="2 times in a row"):
        trainer.fit(module, DataLoader(batches, batch_size=None))


def test_validation_answers_each_prompt_once(tmp_path):
    module = ppo()
    data = PromptDataModule(train="lit-align/manners-prompts", val="lit-align/manners-prompts:validation",
                            batch_size=8, limit=16)  # fmt: skip
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    first, again = (trainer.validate(module, data, verbose=False)[0] for _ in range(2))
    assert first == again
    assert 0 <= first["val/reward"] <= 1
    assert first["val/objective/kl"] == pytest.approx(0.0, abs=1e-3)
    assert first["val/completions/max_length"] <= 10


def test_predictions_are_completions_with_their_rewards(tmp_path):
    module = ppo()
    data = PromptDataModule(predict="lit-align/manners-prompts:validation", batch_size=4, limit=8)
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    found = trainer.predict(module, data)
    assert [row for part in found for row in part["row"]] == list(range(8))
    for part in found:
        assert part["polite"] == polite(part["completion"])


def test_the_critic_and_the_head_are_in_the_checkpoint(tmp_path):
    module = ppo(critic="lit-align/tiny")
    save = ModelCheckpoint(tmp_path, every_n_train_steps=2, filename="last")
    fit(module, tmp_path, steps=2, callbacks=[save], enable_checkpointing=True)
    names = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {n for n, p in module.named_parameters() if p.requires_grad} <= names.keys()
    assert any(name.startswith("critic.") for name in names)
    assert not any(name.startswith("reference.") for name in names)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lower_precision_samples_and_trains(tmp_path, precision):
    module = ppo(num_epochs=2, num_minibatches=1)
    module.configure_model()
    before = digest(module)
    _, steps = fit(module, tmp_path, steps=3, precision=precision)
    assert not same(before, digest(module))
    assert [step["val/ratio"] == 1.0 for step in steps] == [True, False, True]
    # The sampler and the trainer round in ways of their own: a few percent, and no more.
    assert steps[0]["ratio/first_mean"] == pytest.approx(1.0, abs=0.05)


def test_every_answer_is_one_of_the_present_weights(tmp_path):
    """A generator in another process answers with the weights that it was given last."""

    class Elsewhere(NativeGenerator):
        def __init__(self):
            super().__init__()
            self.given, self.versions, self.stale = None, [], 0

        def sync(self, policy, version):
            self.given = [p.detach().clone() for p in policy.parameters()]
            self.versions.append(version)

        def generate(self, policy, *arguments, **options):
            now = list(policy.parameters())
            self.stale += self.given is None or not all(map(torch.equal, self.given, now))
            return super().generate(policy, *arguments, **options)

    elsewhere = Elsewhere()
    module = ppo(generator=elsewhere)
    source = "lit-align/manners-prompts"
    data = PromptDataModule(train=source, test=source, batch_size=4, limit=8)
    trainer = L.Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, val_check_interval=3, limit_val_batches=1,
        num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.test(module, data)
    module.respond(["Hello"])
    # A version names its weights for good.
    assert elsewhere.versions == list(range(len(elsewhere.versions)))
    assert elsewhere.stale == 0
