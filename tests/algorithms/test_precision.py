"""Training in the trainer's precisions: true ones convert weights and no batches, float16 scales its loss."""

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from lit_align.algorithms.dpo import DPO
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.precision import keep_forests
from lit_align.algorithms.reward import RewardModel
from lit_align.algorithms.sft import SFT
from lit_align.batches import Forest


def pairs() -> Forest:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (40, 30), generator=generator).tolist()
    return Forest.from_lists([row[:9] for row in ids], [[row[9:20], row[20:]] for row in ids])


def make(name: str, **arguments):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=1,
    )
    if name == "reward":
        return RewardModel(LlamaForSequenceClassification(config))
    return {"sft": SFT, "dpo": DPO}[name](LlamaForCausalLM(config), **arguments)


@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16-true", 0.02), ("64-true", 1e-4)])
def test_a_step_in_true_precision(one_step, name, precision, tolerance):
    """The loss is float32's but for rounding, and 40 * (18 + 21) = 1560 tokens are counted exactly."""
    plain = one_step(make(name), [pairs()])
    run = one_step(make(name), [pairs()], precision=precision)
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    assert all(grad.dtype == dtype for grad in run.grads.values())
    assert run.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=tolerance)
    assert run.metrics["num_tokens"] == 40 * (2 * 9 + 11 + 10)


def test_batches_keep_their_precision_and_others_do_not():
    plugin = HalfPrecision("bf16-true")
    keep_forests(plugin)
    first = plugin.convert_input
    keep_forests(plugin)
    assert plugin.convert_input is first
    batch = pairs()
    assert plugin.convert_input(batch) is batch
    assert plugin.convert_input(torch.zeros(1)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["sft", "dpo"])
@pytest.mark.parametrize("parts", [None, 300])
def test_mixed_float16_gives_the_gradients_of_float32(one_step, name, parts):
    """Also small ones: β = 1e-4 makes the derivatives of DPO's loss 5e-5, whose products float16 loses."""
    arguments = {"optim": OptimConfig(micro_batch_tokens=parts)}
    if name == "dpo":
        arguments["beta"] = 1e-4
    plain = one_step(make(name, **arguments), [pairs()])
    scale = 2.0**10 if name == "sft" else 2.0**16
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    mixed = MixedPrecision("16-mixed", "cpu", scaler)
    run = one_step(make(name, **arguments), [pairs()], plugins=[mixed])
    assert scaler.get_scale() == scale
    assert run.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-3)
    for key, grad in plain.grads.items():
        assert (run.grads[key] - grad).norm() < 0.01 * grad.norm(), key


@pytest.mark.parametrize("parts", [None, 300])
def test_the_scale_is_read_once_for_each_optimiser_step(one_step, parts, monkeypatch):
    """On a GPU each reading waits for all that was begun. The first scale is too large, and halved."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1)
    read, ended = [], []
    original = scaler.get_scale
    monkeypatch.setattr(scaler, "get_scale", lambda: read.append(original()) or read[-1])
    monkeypatch.setattr(SFT, "after_optimizer_step", lambda self: ended.append(len(read)))
    module = make("sft", optim=OptimConfig(micro_batch_tokens=parts))
    mixed = MixedPrecision("16-mixed", "cpu", scaler)
    one_step(module, [pairs()] * 6, plugins=[mixed], max_steps=2, accumulate_grad_batches=3)
    assert ended == [1, 2]
    assert read == [2.0**30, 2.0**29]


def test_a_step_that_float16_cannot_hold_is_left_out_and_the_scale_lowered(one_step):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    module = make("sft")
    before = {n: p.detach().clone() for n, p in module._given[0].named_parameters()}
    one_step(module, [pairs()], plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 2.0**29
    assert all(torch.equal(p, before[n]) for n, p in module.policy.model.named_parameters())
