"""Completions of fixed prompts: by whom, and without a trace."""

from typing import Any

import pytest
import torch
from torch import nn

from lit_align import SFT
from lit_align.callbacks.completions import Completer

PROMPTS = ["Hello", "Where is my order?"]


def test_completions_are_the_models_and_seeded(make_stranger, tokenizer) -> None:
    module = make_stranger()
    model = module.language_model
    completer = Completer(module, model, tokenizer, batch_size=2)
    kinds, state = [type(m) for m in model.modules()], torch.get_rng_state()
    first = completer.forest(PROMPTS, [0, 1], 8, temperature=1.0)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    # Its blocks are those it had, so that training computes what it did.
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(first.completion_ids, completer.forest(PROMPTS, [0, 1], 8, 1.0).completion_ids)
    assert not torch.equal(first.completion_ids, completer.forest(PROMPTS, [2, 3], 8, 1.0).completion_ids)
    assert max(first.completion_lengths) <= 8
    # The end is part of what was sampled, and nothing behind it is.
    model.generation_config.eos_token_id = [int(first.completion_ids[2])]
    assert completer.forest(PROMPTS, [0, 1], 8, 1.0).completion_lengths[0] == 3
    assert completer.texts(PROMPTS, [0, 1], 8, 0.0) == completer.texts(PROMPTS, [5, 6], 8, 0.0)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_change_nothing(batch_size: int, make_stranger, tokenizer) -> None:
    module = make_stranger()
    whole = Completer(module, module.language_model, tokenizer, 5).texts([*PROMPTS, "No"], range(3), 6, 1.0)
    parts = Completer(module, module.language_model, tokenizer, batch_size)
    assert parts.texts([*PROMPTS, "No"], range(3), 6, 1.0) == whole


def test_our_policy_and_the_models_own_loop_agree(tokenizer) -> None:
    module = SFT("lit-align/tiny")
    module.configure_model()
    model = module.policy.model
    ours = Completer(module, model, tokenizer, 2)
    outside = nn.ModuleDict({"language_model": model})
    theirs = Completer(outside, model, tokenizer, 2)
    for temperature in (0.0, 1.0):
        texts = [c.texts(PROMPTS, range(2), 12, temperature) for c in (ours, theirs)]
        assert texts[0] == texts[1]
        assert all(texts[0])


def test_another_generator_is_asked(make_stranger, tokenizer) -> None:
    calls: list[Any] = []

    class Spy:
        def sync(self, policy: Any, version: int) -> None: ...

        def generate(self, policy: Any, tokenizer: Any, prompts: Any, **options: Any) -> Any:
            calls.append((prompts, options))
            raise RuntimeError("asked")

    module = make_stranger()
    with pytest.raises(RuntimeError, match="asked"):
        Completer(module, module.language_model, tokenizer, 2, Spy()).texts(PROMPTS, [3, 4], 6, 0.5)
    ((prompts, options),) = calls
    assert (len(prompts), options["completions"], options["seeds"]) == (2, 1, [3, 4])
    assert (options["sampling"].max_new_tokens, options["sampling"].temperature) == (6, 0.5)


def test_what_does_not_write_is_told(make_stranger, tokenizer) -> None:
    with pytest.raises(ValueError, match="Linear does not generate text"):
        Completer(make_stranger(), nn.Linear(1, 1), tokenizer, 2)
