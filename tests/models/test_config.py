"""Descriptions: what they accept, what they refuse and in which words."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from lit_align.models.config import LoraConfig, ModelConfig, QuantizationConfig


def test_a_description_survives_plain_data():
    config = ModelConfig(
        path="org/name",
        dtype="bf16",
        lora=LoraConfig(r=4, targets=["q_proj"], extra={"rank_pattern": {"q_proj": 2}}),
        quantization=QuantizationConfig("int8"),
    )
    again = ModelConfig.coerce(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert isinstance(again.lora, LoraConfig)
    assert isinstance(again.quantization, QuantizationConfig)


def test_everything_that_names_a_model_is_taken(architecture):
    assert ModelConfig.coerce("org/name") == ModelConfig(path="org/name")
    assert ModelConfig.coerce(Path("some") / "folder").path == "some/folder"
    assert ModelConfig.coerce({"path": "x", "dtype": torch.float16}).dtype == "float16"
    assert ModelConfig.coerce(architecture).architecture == architecture
    from_object = ModelConfig.coerce(LlamaConfig(hidden_size=32))
    assert from_object.random_weights
    assert from_object.architecture["model_type"] == "llama"
    assert from_object.architecture["hidden_size"] == 32
    config = ModelConfig("x")
    assert ModelConfig.coerce(config) is config
    with pytest.raises(TypeError, match="not int"):
        ModelConfig.coerce(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig("x", dtype="bfloat17"), "did you mean 'bfloat16'"),
        (lambda: ModelConfig.coerce({"path": "x", "dtyp": "auto"}), "did you mean 'dtype'"),
        (lambda: ModelConfig("x", lora={"alhpa": 1}), "lora has no field 'alhpa'; did you mean 'alpha'"),
        (lambda: ModelConfig("x", lora=8), "not int"),
        (lambda: ModelConfig(), "needs a path or an architecture; found neither"),
        (lambda: ModelConfig("x", architecture={"model_type": "llama"}), "found both"),
        (lambda: ModelConfig(architecture={"hidden_size": 2}), "no model_type"),
        (lambda: ModelConfig("x", adapter="a", lora=LoraConfig()), "Remove one"),
        (lambda: ModelConfig("x", from_scratch=True, quantization=QuantizationConfig()), "random weights"),
        (lambda: QuantizationConfig("fp4"), "must be nf4 or int8"),
        (lambda: QuantizationConfig(compute_dtype="bf61"), "compute_dtype"),
        (lambda: LoraConfig(r=0), "at least 1"),
        (lambda: LoraConfig(dropout=1.0), "below 1"),
        (lambda: LoraConfig(targets=[]), "all-linear"),
        (lambda: LoraConfig(bias="some"), "lora_only"),
        (lambda: LoraConfig(dtype="float16"), "float32 or base"),
        (lambda: LoraConfig(extra={"lora_alpha": 3}), "use lora.alpha"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
