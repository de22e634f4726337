"""TR-DPO's updates of a reference, soft and hard, in anyone's module and with adapters."""

import copy
from typing import Any

import lightning as L
import pytest
import torch

from lit_align import DPO
from lit_align.callbacks import SyncReference
from lit_align.datamodules import PreferenceDataModule
from lit_align.scoring.adapters import adapter_tensors, snapshot_adapter
from lit_align.scoring.references import EMA, Cached, FrozenCopy


class Record(L.Callback):
    """The trained weights at the start and after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.steps.append({n: p.detach().double() for n, p in _policy(module).items()})

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.on_train_start(trainer, module)


def _policy(module: Any) -> dict[str, torch.Tensor]:
    return {n: p for n, p in module.language_model.named_parameters() if p.requires_grad}


def _with_reference(module: Any) -> Any:
    module.ref_model = copy.deepcopy(module.language_model).requires_grad_(False)
    return module


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_the_recurrence(alpha, package, make_stranger, make_trainer, loader) -> None:
    """Equation 4 by hand, in float64: updates at steps 2 and 4 of 5."""
    module, record = _with_reference(make_stranger(package)), Record()
    if package is not L:
        record = type("Theirs", (package.Callback,), dict(vars(Record)))()
    trainer = make_trainer(SyncReference(alpha, 2), record, package=package, max_steps=5)
    trainer.fit(module, loader())
    expected = record.steps[0]
    for step in (2, 4):
        now = record.steps[step]
        expected = {n: (1 - alpha) * value + alpha * now[n] for n, value in expected.items()}
    found = dict(module.ref_model.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-6, atol=1e-7)
        assert not found[name].requires_grad


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_two_adapters_on_one_base(alpha, make_stranger, make_trainer, loader) -> None:
    module = make_stranger(lora=True)
    model = module.language_model
    base = {n: p.clone() for n, p in model.named_parameters() if "lora" not in n}
    snapshot_adapter(model, "before")
    start = {n: p.clone() for n, p in adapter_tensors(model, "before").items()}
    make_trainer(SyncReference(alpha, 3), max_steps=3).fit(module, loader())
    trained = adapter_tensors(model, "default")
    for name, value in adapter_tensors(model, "before").items():
        torch.testing.assert_close(value, (1 - alpha) * start[name] + alpha * trained[name])
        assert not value.requires_grad
        assert trained[name].requires_grad
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)


def test_training_and_reference_go_on_through_a_resume(make_stranger, make_trainer, loader, tmp_path) -> None:
    whole = _with_reference(make_stranger())
    make_trainer(SyncReference(0.5, 2), max_steps=8).fit(whole, loader(8))
    trainer = make_trainer(SyncReference(0.5, 2), max_steps=4)
    trainer.fit(_with_reference(make_stranger()), loader(8))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    # As a module whose own checkpoint leaves the reference out.
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    weights = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("ref_model")}
    torch.save({**checkpoint, "state_dict": weights}, tmp_path / "x.ckpt")
    resumed = _with_reference(make_stranger())
    resumed.strict_loading = False
    sync = SyncReference(0.5, 2)
    make_trainer(sync, max_steps=8).fit(resumed, loader(8), ckpt_path=tmp_path / "x.ckpt")
    assert sync.updates == 4
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_an_adapter_that_follows_goes_on_through_a_resume(
    make_stranger, make_trainer, loader, tmp_path
) -> None:
    def run(steps: int, path: Any = None) -> dict[str, torch.Tensor]:
        module = make_stranger(lora=True)
        snapshot_adapter(module.language_model, "before")
        trainer = make_trainer(SyncReference(0.5, 2), max_steps=steps)
        trainer.fit(module, loader(8), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return {name: p.clone() for name, p in module.named_parameters()}

    whole = run(8)
    # Between two updates.
    run(5)
    resumed = run(8, tmp_path / "5.ckpt")
    assert any(".before." in name for name in whole)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_our_dpo_equals_its_own_ema_reference(make_trainer) -> None:
    found = []
    for reference, callbacks in ((EMA(0.5, 2), []), (FrozenCopy(), [SyncReference(0.5, 2)])):
        L.seed_everything(0)
        policy = {"path": "lit-align/tiny", "lora": {"r": 4}}
        module = DPO(policy, reference=reference, lr=1e-3)
        data = PreferenceDataModule(train="lit-align/manners-pairs", batch_size=4)
        trainer = make_trainer(*callbacks, max_steps=4, limit_val_batches=0)
        trainer.fit(module, data)
        found.append(float(trainer.callback_metrics["train/loss"]))
    assert found[0] == found[1]


def test_a_reference_that_is_moved_says_so(make_trainer) -> None:
    reference = FrozenCopy()
    assert not reference.moves
    module = DPO("lit-align/tiny", reference=reference)
    trainer = make_trainer(SyncReference(0.5, 2), max_steps=1)
    trainer.fit(module, PreferenceDataModule("lit-align/manners-pairs", batch_size=2))
    assert reference.moves


def test_what_cannot_be_synced_is_told(make_stranger, make_model, make_trainer, loader) -> None:
    def fit(module: Any, **options: Any) -> None:
        make_trainer(SyncReference(**options), max_steps=1).fit(module, loader())

    with pytest.raises(ValueError, match="alpha is 0"):
        SyncReference(0)
    with pytest.raises(ValueError, match=r"Stranger should hold one reference.*it holds none"):
        fit(make_stranger())
    with pytest.raises(ValueError, match="model='nowhere'"):
        fit(_with_reference(make_stranger()), reference="nowhere")
    module = make_stranger()
    module.ref_model = module.language_model
    with pytest.raises(ValueError, match="the policy itself"):
        fit(module, reference="ref_model", model="language_model")
    bare = make_stranger(lora=True)
    bare.ref_model = make_model().requires_grad_(False)
    with pytest.raises(ValueError, match="no counterpart in the reference, such as"):
        fit(bare)
    for inner, said in ((EMA(), "follows by itself"), (Cached(FrozenCopy()), "keeps log-probs")):
        module = _with_reference(make_stranger())
        module.inner = inner
        with pytest.raises(ValueError, match=said):
            fit(module)
