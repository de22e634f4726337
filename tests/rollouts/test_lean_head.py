"""The lean head gives the logits of the model's own."""

import pytest
import torch

from lit_align.rollouts.lean_head import lean_head
from lit_align.scoring.flat import next_logits
from tests.scoring.architectures import FLAT, build


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma", "cohere", "granite", "opt"])
def test_logits_are_the_models(kind, copied):
    model = build(kind, FLAT[kind])
    # Soft-capped or not, and both ways of scaling.
    model.config.final_logit_softcapping = 3.0 if kind == "gemma" else None
    head = lean_head(model)
    assert head is not None
    if copied:
        head.copy()
    weight = model.get_output_embeddings().weight
    assert head.copy_size() == weight.numel() * 4
    with torch.no_grad():
        states = 3 * torch.randn(3, weight.shape[1])
        torch.testing.assert_close(head(states), next_logits(model, states))


def test_who_is_left_alone():
    model = build("llama", FLAT["llama"])
    listener = model.lm_head.register_forward_hook(lambda *_: None)
    assert lean_head(model) is None
    listener.remove()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert lean_head(model) is None
