"""The figures of the model card, on fewer rows: what the demos of every algorithm start from."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from lit_align import shipped

ROWS = 160
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(shipped.find("lit-align/tiny")).eval()


@pytest.fixture(scope="module")
def figures(model):
    from transformers import AutoTokenizer

    def rows(name):
        with gzip.open(shipped.find(f"lit-align/{name}:validation"), "rt", encoding="utf-8") as lines:
            return [json.loads(line) for _, line in zip(range(ROWS), lines, strict=False)]

    tokenizer = AutoTokenizer.from_pretrained(shipped.find("lit-align/tiny"))
    names = ("manners-pairs", "manners-prompts", "sums-sft", "sums-prompts")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        from shipped_measure import measure
    return measure(model, tokenizer, {name: rows(name) for name in names})


def test_it_is_a_float32_decoder_of_about_a_million_parameters(model):
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 750_000 <= sum(p.numel() for p in model.parameters()) <= 950_000
    assert model.config.tie_word_embeddings


# 160 samples: the standard error of a share of one half is 4 points.
def test_it_is_polite_about_half_of_the_time(figures):
    assert 0.38 <= figures["polite share of sampled replies"] <= 0.62
    assert 0.38 <= figures["rude share of sampled replies"] <= 0.62
    assert 0.38 <= figures["pairs whose polite reply is the more probable"] <= 0.62


def test_it_ends_its_replies_and_gives_the_right_advice(figures):
    assert figures["sampled replies that end by themselves"] >= 0.99
    assert figures["sampled replies with the right advice"] >= 0.95


def test_it_adds_unseen_numbers(figures):
    assert figures["sums right, greedy"] >= 0.85
    assert figures["sums right, sampled"] >= 0.75


def test_the_card_gives_the_command(model):
    card = (shipped.find("lit-align/tiny") / "README.md").read_text(encoding="utf-8")
    assert "python scripts/build_shipped.py\n" in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
