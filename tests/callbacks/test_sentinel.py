"""A planted fault of each kind is told, with its name; healthy runs are left in peace."""

import math
import warnings
from typing import Any

import pytest
import torch

from lit_align import DPO, SFT, RewardModel
from lit_align.algorithms.optim import OptimConfig
from lit_align.callbacks import KLTracker, Sentinel
from lit_align.callbacks.sentinel_check import Seen
from lit_align.callbacks.sentinel_checks import CHECKS, repeated_share
from lit_align.callbacks.sentinel_rewards import kendall_with_time
from lit_align.datamodules import PreferenceDataModule, SupervisedDataModule


def _metrics(name: str, *values: float) -> list[Seen]:
    return [Seen(metrics={name: value, "tokens": float(i)}) for i, value in enumerate(values)]


#: For each check: looks that are told at the last of them, and looks that are not told at all.
FAULTS: dict[str, tuple[list[Seen], list[Seen]]] = {
    "zero_loss": ([Seen(loss=0.0)] * 3, [Seen(loss=0.0), Seen(loss=0.0), Seen(loss=1e-9)]),
    "all_masked": ([Seen(learned=3), Seen(learned=0)], [Seen(learned=1)]),
    "not_finite": (
        [Seen(loss=math.nan)],
        [Seen(loss=1e30), Seen(metrics={"completions/min_terminated_length": math.inf})],
    ),
    "constant_rewards": (_metrics("rewards/chosen", *[0.5] * 5), _metrics("rewards/accuracies", *[1.0] * 9)),
    "groups_without_spread": (
        _metrics("frac_reward_zero_std", 1, 1, 1),
        _metrics("frac_reward_zero_std", 1, 1, 0.9, 1),
    ),
    "kl_range": (_metrics("kl/k3", 0.1, 1.5, 1.6), _metrics("kl/k3", 1.5, 0.1, 1.6)),
    "entropy_collapse": (
        _metrics("entropy", *[1.0] * 5, 0.02, 0.02, 0.02),
        _metrics("entropy", *[1.0] * 5, 0.02, 0.02, 0.5, 0.06, 0.06, 0.06),
    ),
    "gradient_spike": (
        [*[Seen(grad_norm=1.0 + i / 9) for i in range(10)], Seen(grad_norm=30.0)],
        [*[Seen(grad_norm=1.0)] * 12, Seen(grad_norm=9.0), Seen(grad_norm=40.0)],
    ),
    "length_drift": (
        _metrics("completions/mean_length", 10, 11, 9, 30),
        _metrics("completions/mean_length", 10, 11, 9, 18, 3),
    ),
    "ratio_at_start": (
        _metrics("ratio/first_mean", 1.0, 1.03),
        _metrics("ratio/first_mean", 1.01, 0.985),
    ),
    "held_out_reward": (
        [Seen(held_out=(i / 9, 1 - i / 9)) for i in range(10)],
        [Seen(held_out=(i / 9, i / 9 if i % 2 else 0.5)) for i in range(20)],
    ),
    "repetition": (
        [Seen(texts=[[1, 2] * 10])],
        [Seen(texts=[list(range(20)), [1, 1, 1]]), Seen(texts=[[1, 2] * 10, [], [1]])],
    ),
}


def test_there_is_a_fault_for_each_check() -> None:
    assert FAULTS.keys() == CHECKS.keys()
    assert all(make().source for make in CHECKS.values())


@pytest.mark.parametrize("name", FAULTS)
def test_each_check(name: str) -> None:
    faults, healthy = FAULTS[name]
    check = CHECKS[name]()
    answers = [check.look(seen) for seen in faults]
    assert answers[:-1] == [None] * (len(faults) - 1)
    assert answers[-1]
    calm = CHECKS[name]()
    assert [calm.look(seen) for seen in healthy] == [None] * len(healthy)
    # What was seen of other things changes nothing.
    assert CHECKS[name]().look(Seen()) is None


@pytest.mark.parametrize("name", FAULTS)
def test_memory_survives_a_resume(name: str) -> None:
    faults, _ = FAULTS[name]
    first, second = Sentinel(), Sentinel()
    (before,) = [c for c in first.checks if c.name == name]
    for seen in faults[:-1]:
        before.look(seen)
    second.load_state_dict(first.state_dict())
    (after,) = [c for c in second.checks if c.name == name]
    assert after.look(faults[-1])


def test_negative_kl_and_lengths_from_texts() -> None:
    assert "cannot be negative" in str(CHECKS["kl_range"]().look(Seen(metrics={"objective/kl": -1.5})))
    check = CHECKS["length_drift"]()
    looks = [check.look(Seen(texts=[[1] * length])) for length in (20, 20, 20, 12, 8)]
    assert looks[:4] == [None] * 4
    assert "8 tokens, 20 at the start" in str(looks[4])
    assert repeated_share([1, 2, 3]) == 0


def test_texts_that_the_policy_did_not_write_may_give_any_estimate() -> None:
    """The batch of DPO, or a minibatch that was just learned from: k1 is drift there, of either sign."""
    check = CHECKS["kl_range"]()
    metrics = {"kl/k1": -1.5, "kl/k1_per_sequence": -20.0, "kl/k3": 0.2, "kl/full": 0.1}
    assert [check.look(Seen(metrics=metrics)) for _ in range(3)] == [None] * 3


def test_short_completions_may_double() -> None:
    check = CHECKS["length_drift"]()
    assert [check.look(Seen(texts=[[1] * n])) for n in (3, 3, 3, 6, 11)] == [None] * 5
    assert "12 tokens, 3 at the start" in str(check.look(Seen(texts=[[1] * 12])))


def test_lengths_of_samples_and_of_rollouts_are_not_mixed() -> None:
    check = CHECKS["length_drift"]()
    rollouts = [Seen(metrics={"completions/mean_length": 60.0})] * 3
    greedy = [Seen(texts=[[1] * 8])] * 3
    assert [check.look(seen) for seen in (*rollouts, *greedy, *rollouts, *greedy)] == [None] * 12


def test_the_kl_of_a_whole_completion_is_judged_per_token() -> None:
    check = CHECKS["kl_range"]()
    assert check.look(Seen(metrics={"objective/kl": 40.0, "completions/mean_length": 50.0})) is None
    large = Seen(metrics={"objective/kl": 60.0, "completions/mean_length": 50.0})
    assert check.look(large) is None
    told = check.look(large)
    assert "objective/kl per token is 1.2 nats" in str(told)


def test_the_exact_kl_goes_before_estimates() -> None:
    check = CHECKS["kl_range"]()
    for _ in range(3):
        assert check.look(Seen(metrics={"kl/k3": 3.0, "kl/full": 0.3, "kl/full_per_sequence": 50.0})) is None
    assert "kl/full is 1.1 nats" in str(check.look(Seen(metrics={"kl/k3": 0.1, "kl/full": 1.1})))


def test_kendall() -> None:
    """Of 1 3 2 4 five pairs of six are in order: (5 - 1) / 6."""
    assert kendall_with_time([1, 3, 2, 4]) == pytest.approx(4 / 6)


def _messages(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if str(w.message).startswith("Sentinel")]


def test_masked_labels_in_a_foreign_run(package, make_stranger, make_trainer, rows) -> None:
    masked = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in rows]
    module = make_stranger(package)
    trainer = make_trainer(Sentinel(stop=True), package=package, max_steps=8)
    loader = torch.utils.data.DataLoader(masked, batch_size=2)  # type: ignore[arg-type]
    told = _messages(lambda: trainer.fit(module, loader))
    assert trainer.global_step == 1
    # The mean over no token is NaN, and each is told once.
    assert sorted(m.split(")")[0] for m in told) == ["Sentinel (all_masked", "Sentinel (not_finite"]
    assert all("Look at" in m and m.endswith("Training stops") for m in told)


def test_a_spike_is_seen_at_the_optimiser(make_stranger, make_trainer, loader, monkeypatch) -> None:
    module = make_stranger(lr=1e-4)
    step = module.training_step
    scale = [1.0] * 12 + [1e4] + [1.0] * 9
    monkeypatch.setattr(
        module, "training_step", lambda batch, batch_idx: step(batch, batch_idx) * scale.pop(0)
    )
    sentinel = Sentinel()
    trainer = make_trainer(sentinel, max_steps=16)
    (told,) = _messages(lambda: trainer.fit(module, loader()))
    assert told.startswith("Sentinel (gradient_spike) at step 13")
    assert list(sentinel.messages) == ["gradient_spike"]


def test_repetition_of_prompts_at_validation(
    make_stranger, make_trainer, make_model, loader, tokenizer
) -> None:
    model = make_model()
    # Whatever the text, the next token is this one.
    token = tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    model.lm_head.weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.eye(len(tokenizer))[token])
    trainer = make_trainer(Sentinel(prompts=["Hello"], max_new_tokens=20))
    module = make_stranger(model=model)
    (told,) = _messages(lambda: trainer.validate(module, loader(), verbose=False))
    assert told.startswith("Sentinel (repetition)")


@pytest.mark.parametrize(
    ("module", "data"),
    [
        (lambda: SFT("lit-align/tiny", lr=1e-4), lambda: SupervisedDataModule(train="lit-align/manners-sft")),
        (
            lambda: DPO({"path": "lit-align/tiny", "lora": {"r": 4}}, lr=1e-4),
            lambda: PreferenceDataModule(train="lit-align/manners-pairs"),
        ),
        (
            lambda: RewardModel("lit-align/tiny", lr=1e-4),
            lambda: PreferenceDataModule(train="lit-align/manners-pairs"),
        ),
    ],
    ids=["sft", "dpo", "reward"],
)
def test_a_healthy_run_is_left_in_peace(module, data, make_trainer) -> None:
    healthy = module()
    callbacks: list[Any] = [Sentinel()]
    if not isinstance(healthy, RewardModel):
        callbacks += [KLTracker(every_n_steps=2)]
    trainer = make_trainer(*callbacks, max_steps=25, limit_val_batches=0)
    assert _messages(lambda: trainer.fit(healthy, data())) == []
    assert trainer.global_step == 25


def test_silent_steps_are_not_looked_at(make_stranger, make_trainer, loader, monkeypatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(Sentinel, "_look", lambda self, trainer, seen: looks.append(trainer.global_step))
    norms: list[Any] = []
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda grads: norms.append(1) or torch.ones(()))
    make_trainer(Sentinel(3), max_steps=7).fit(make_stranger(), loader())
    assert looks == [3, 6]
    assert len(norms) == 2


def test_checks_can_be_left_out() -> None:
    names = [check.name for check in Sentinel(without=["repetition"]).checks]
    assert names == [name for name in CHECKS if name != "repetition"]
    with pytest.raises(ValueError, match="no check loss; there are zero_loss"):
        Sentinel(without=["loss"])


@pytest.mark.parametrize("sparse", [False, True])
def test_the_norm_of_a_sparse_gradient_is_that_of_the_whole(sparse: bool, make_trainer: Any) -> None:
    """Token 0 has the gradients 1 and 2, so 3 in all, and token 3 has 4."""
    embedding = torch.nn.Embedding(5, 1, sparse=sparse)
    (embedding(torch.tensor([0, 0, 3])).squeeze(1) * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    sentinel = Sentinel(1)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=1.0)
    sentinel.on_before_optimizer_step(make_trainer(), Any, optimizer)  # type: ignore[arg-type]
    assert sentinel._grad_norm == 5.0
    embedding.weight.grad = None
    idle = Sentinel(1)
    idle.on_before_optimizer_step(make_trainer(), Any, optimizer)  # type: ignore[arg-type]
    assert idle._grad_norm is None


def test_a_run_with_sparse_gradients_is_looked_at(make_trainer: Any) -> None:
    norms: list[list[float | None]] = []
    for sparse in (False, True):
        torch.manual_seed(0)
        optim = OptimConfig(sparse_embedding=sparse, schedule="constant")
        module = RewardModel("lit-align/tiny", lr=1e-4, optim=optim)
        seen: list[float | None] = []

        class Keeps(Sentinel):
            def _look(self, trainer: Any, found: Seen, into: list[float | None] = seen) -> None:
                into.append(found.grad_norm)

        data = PreferenceDataModule(train="lit-align/manners-pairs")
        make_trainer(Keeps(1), max_steps=3, limit_val_batches=0).fit(module, data)
        norms.append(seen)
    assert len(norms[0]) == 3
    assert None not in norms[0]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
