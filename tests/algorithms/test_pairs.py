"""From scores to pairs, worked by hand; whole cases are in the tests of the algorithms."""

import pytest
import torch

from lit_align.algorithms.pairs import check_pairs, pair_metrics, pair_of
from lit_align.batches import Forest
from lit_align.outputs import Scores

PAIRS = Forest.from_lists([[1], [2]], [[[3, 4], [5]], [[6], [7, 8, 9]]])
LOGPS = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0])


def test_sums_and_lengths():
    """Chosen: -1-2 = -3 and -4; rejected: -3 and -5-6-7 = -18; reference 0.5 a token."""
    batch = PAIRS.with_token_column("reference_logps", torch.full((7,), 0.5))
    pair = pair_of(Scores(LOGPS), batch)
    assert pair.chosen_logps.tolist() == [-3, -4]
    assert pair.rejected_logps.tolist() == [-3, -18]
    assert pair.chosen_reference_logps.tolist() == [1.0, 0.5]
    assert pair.rejected_lengths.tolist() == [1, 3]
    assert pair.chosen_nll.tolist() == [3, 4]


def test_the_tail_past_the_rival_counts_less():
    """Shared lengths 1 and 1, tail weight 0.5: -1 - 2/2 = -2 and -5 - 13/2 = -11.5."""
    pair = pair_of(Scores(LOGPS), PAIRS, ld_alpha=0.5)
    assert pair.chosen_logps.tolist() == [-2, -4]
    assert pair.rejected_logps.tolist() == [-3, -11.5]
    assert pair.chosen_nll.tolist() == [3, 4], "the supervised term is the plain sum"


def test_metrics():
    """Rewards at beta 2: chosen -6, -8; rejected -6, -36: a tie is no win."""
    scores = Scores(LOGPS, top1=torch.tensor([1.0, 0, 1, 1, 0, 0, 0]))
    metrics = pair_metrics(pair_of(scores, PAIRS), scores, PAIRS, beta=2.0)
    found = {name: (m.value / m.weight).item() for name, m in metrics.items()}
    assert found["rewards/chosen"] == -7
    assert found["rewards/margins"] == 14
    assert found["rewards/accuracies"] == 0.5
    assert found["mean_token_accuracy"] == pytest.approx(2 / 3), "over chosen tokens"
    assert "entropy" not in found


def test_other_groups_are_refused():
    with pytest.raises(ValueError, match="XPO takes pairs"):
        check_pairs(Forest.from_lists([[1]], [[[2], [3], [4]]]), "XPO")
