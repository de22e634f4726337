"""Architectures split over two processes give the numbers of one, whatever lies between their layers."""

import json

import pytest

FAMILIES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt_neox",
    "phi",
    "granite",
    "starcoder2",
    "olmo",
    "cohere",
    "cohere2",
    "exaone4",
    "smollm3",
    "nemotron",
    "helium",
    "seed_oss",
    "ministral",
]


@pytest.mark.slow
def test_logits_and_all_gradients_are_those_of_one_process(forked, tmp_path):
    """Before any average: a gradient that lacks the other process's part is a wrong one."""
    forked("split_families", 2, tmp_path, tmp_path, *FAMILIES)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert list(counts) == FAMILIES
    assert all(full >= 16 and lora >= 16 for full, lora in counts.values())
