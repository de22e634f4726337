"""Training in the trainer's true precisions: weights are converted, batches are not."""

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from lit_align.algorithms.dpo import DPO
from lit_align.algorithms.precision import keep_forests
from lit_align.algorithms.reward import RewardModel
from lit_align.algorithms.sft import SFT
from lit_align.batches import Forest


def pairs() -> Forest:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (40, 30), generator=generator).tolist()
    return Forest.from_lists([row[:9] for row in ids], [[row[9:20], row[20:]] for row in ids])


def make(name: str):
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
    return {"sft": SFT, "dpo": DPO}[name](LlamaForCausalLM(config))


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
