"""Log-probs do not depend on what else is asked for."""

import pytest
import torch

from lit_align.scoring import head_work
from lit_align.scoring.head_work import Head, HeadWork, head_scores

STATISTICS = frozenset({"entropy", "mean_logit", "top1"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [2**18, 3000], ids=["at once", "in pieces"])
def test_log_probs_are_the_same_to_the_bit_with_and_without_statistics(dtype, piece, monkeypatch):
    monkeypatch.setattr(head_work, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(64, 16, generator=generator).to(dtype)
    head = Head((2 * torch.randn(997, 16, generator=generator)).to(dtype))
    targets = torch.randint(0, 997, (64,), generator=generator)
    without = head_scores(states, head, targets)["logps"]
    assert torch.equal(head_scores(states, head, targets, STATISTICS)["logps"], without)


def test_a_larger_tile_takes_the_place_of_the_smaller(monkeypatch):
    """The smaller one is let go before the larger is made."""
    states, head = torch.randn(8, 4), Head(torch.randn(11, 4))
    work = HeadWork(states, head, torch.zeros(8, dtype=torch.long), frozenset(), (False,) * 4)
    work.logits(0, 3)
    held = []
    make = torch.Tensor.new_empty

    def spy(self, *size):
        held.append(work.tile)
        return make(self, *size)

    monkeypatch.setattr(torch.Tensor, "new_empty", spy)
    work.logits(0, 8)
    assert held == [None]
    assert len(work.tile) == 8
