"""4 and 8 bits on the CPU: loading, adapters on top, one backward pass, export in full precision."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_align.models.build import build_causal_lm, build_reward_model
from lit_align.models.config import QuantizationConfig
from lit_align.models.export import save_pretrained_dir
from lit_align.models.quantization import bitsandbytes_config

pytestmark = pytest.mark.slow


def test_fields_reach_the_library():
    config = bitsandbytes_config(QuantizationConfig("nf4", compute_dtype="bf16", double_quant=False))
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert (config.bnb_4bit_compute_dtype, config.bnb_4bit_use_double_quant) == (torch.bfloat16, False)
    config = bitsandbytes_config(QuantizationConfig("int8", extra={"llm_int8_threshold": 4.0}))
    assert (config.load_in_8bit, config.llm_int8_threshold) == (True, 4.0)


@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 0.6), ("int8", 0.08)])
def test_a_quantised_base_learns_through_adapters_and_merges_in_full(
    checkpoint, tmp_path, ids, kind, tolerance
):
    full = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    model = build_causal_lm(
        {
            "path": str(checkpoint),
            "lora": {"r": 4},
            "quantization": {"kind": kind},
            "gradient_checkpointing": True,
        }
    )
    with torch.no_grad():
        expected = full(ids).logits
        error = (model.eval()(ids).logits - expected).abs().max() / expected.std()
    assert 0 < error < tolerance, "quantised, and close to the original"

    model.train()
    model(ids, labels=ids, use_cache=False).loss.backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert trainable
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trainable)
    assert any(p.grad.abs().max() > 0 for p in trainable)

    generator = torch.Generator().manual_seed(0)
    for p in trainable:
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    merged = AutoModelForCausalLM.from_pretrained(
        save_pretrained_dir(model, None, tmp_path / "m", merge=True)
    )
    assert not getattr(merged, "is_quantized", False)
    assert merged.dtype == torch.float32
    # The same adapter on the base in full precision, by peft alone.
    from peft import PeftModel

    adapter = save_pretrained_dir(model, None, tmp_path / "adapter")
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(full, adapter).eval()(ids).logits
        torch.testing.assert_close(merged.eval()(ids).logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_pass_in_eval_mode_does_not_change_later_gradients(checkpoint, ids, kind):
    def gradients(look_first):
        model = build_causal_lm({"path": str(checkpoint), "lora": {"r": 4}, "quantization": {"kind": kind}})
        if look_first:
            with torch.no_grad():
                model.eval()(ids)
        model.train()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain, after_a_look = gradients(False), gradients(True)
    assert any(g.abs().max() > 0 for g in plain.values())
    for name, gradient in plain.items():
        assert torch.equal(gradient, after_a_look[name]), name


def test_a_quantised_reward_model_keeps_its_head_through_a_merge(checkpoint, tmp_path, ids):
    model = build_reward_model(
        {"path": str(checkpoint), "lora": {"r": 4}, "quantization": {"kind": "int8"}}, pad_token_id=0
    )
    head = next(p for n, p in model.named_parameters() if n.endswith("score.modules_to_save.default.weight"))
    head.data.fill_(0.25)
    path = save_pretrained_dir(model, None, tmp_path / "m", merge=True)
    again = build_reward_model(str(path))
    assert torch.equal(again.score.weight, head)
    assert again.config.pad_token_id == 0
