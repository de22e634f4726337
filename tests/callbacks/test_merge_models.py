"""The trained model mixed with its start, with a path, and with others."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_align.callbacks import MergeModels


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone().double() for name, value in model.state_dict().items()}


def _arc(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    omega = torch.acos(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
    return (torch.sin((1 - t) * omega) * a + torch.sin(t * omega) * b) / torch.sin(omega)


MIXTURES = {
    "linear": lambda a, b: 0.7 * a + 0.3 * b,
    "slerp": lambda a, b: _arc(a, b, 0.3),
    "task_arithmetic": lambda a, b: a + 0.3 * (b - a),
}


@pytest.mark.parametrize("method", MIXTURES)
def test_between_the_start_and_now(
    method: Any, package, make_stranger, make_model, make_trainer, loader, tmp_path
) -> None:
    start = _weights(make_model())
    found = []
    for callbacks in ([], [MergeModels(str(tmp_path / "mixed"), method, 0.3, every_n_steps=2)]):
        module = make_stranger(package)
        make_trainer(*callbacks, package=package, max_steps=3).fit(module, loader())
        found.append(_weights(module.language_model))
    # Training is the same with it and without.
    assert all(torch.equal(found[0][name], found[1][name]) for name in start)
    assert sorted(p.name for p in (tmp_path / "mixed").iterdir()) == ["step_000002", "step_000003"]
    mixed = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed/step_000003").state_dict()
    for name, value in start.items():
        torch.testing.assert_close(
            mixed[name].double(), MIXTURES[method](value, found[0][name]), rtol=1e-4, atol=1e-5
        )


def test_adapters_are_worked_in_first(
    make_stranger, make_model, make_trainer, loader, tmp_path, rows
) -> None:
    """Half of the trained model and half of the base is the adapter at half its strength."""
    module = make_stranger(lora=True)
    make_trainer(MergeModels(str(tmp_path / "mixed")), max_steps=2).fit(module, loader())
    for layer in module.language_model.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            layer.scaling["default"] /= 2
    mixed = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed").eval()
    ids = rows[0]["input_ids"][None]
    with torch.no_grad():
        expected = module.language_model.eval()(input_ids=ids).logits
        torch.testing.assert_close(mixed(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_base_and_others_by_path(make_stranger, make_model, make_trainer, loader, tmp_path) -> None:
    models = {name: make_model(seed=seed) for name, seed in (("base", 7), ("other", 8))}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    merge = MergeModels(
        str(tmp_path / "mixed"),
        "task_arithmetic",
        0.5,
        base=str(tmp_path / "base"),
        others={str(tmp_path / "other"): -0.25},
    )
    module = make_stranger()
    make_trainer(merge, max_steps=2).fit(module, loader())
    base, other, now = (_weights(m) for m in (models["base"], models["other"], module.language_model))
    mixed = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed").state_dict()
    for name, value in base.items():
        expected = value + 0.5 * (now[name] - value) - 0.25 * (other[name] - value)
        torch.testing.assert_close(mixed[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_keeps_its_start(make_stranger, make_model, make_trainer, loader, tmp_path) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_stranger(), loader(8))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    module, start = make_stranger(), _weights(make_model())
    make_trainer(MergeModels(str(tmp_path / "mixed")), max_steps=4).fit(
        module, loader(8), ckpt_path=tmp_path / "x.ckpt"
    )
    now = _weights(module.language_model)
    mixed = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed").state_dict()
    for name, value in start.items():
        torch.testing.assert_close(mixed[name].double(), (value + now[name]) / 2, rtol=1e-5, atol=1e-6)


def test_wrong_arguments_are_told(make_stranger, make_trainer, loader, tmp_path) -> None:
    with pytest.raises(ValueError, match="method is 'ties'; choose one of linear, slerp"):
        MergeModels(method="ties")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="others go with task_arithmetic"):
        MergeModels(others={"x": 1.0})
    merge = MergeModels(str(tmp_path / "mixed"), base="lit-align/tiny")
    with pytest.raises(ValueError, match="one architecture and one vocabulary"):
        make_trainer(merge, max_steps=1).fit(make_stranger(), loader())
