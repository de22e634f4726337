"""Weighted metrics: worked by hand, and invariant to how the batches were cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.algorithms.metrics import MetricTable
from lit_align.outputs import Metric, merge_metrics


def test_mean_is_weighted_and_extremes_are_extremes():
    """(1 + 2 + 3*2) / (1 + 1 + 2) = 9 / 4."""
    table = MetricTable()
    table.update(
        [
            {"a": Metric.mean(torch.tensor([1.0, 2.0])), "low": Metric.low(torch.tensor([3.0, -1.0]))},
            {
                "a": Metric.mean(torch.tensor([3.0]), torch.tensor([2.0])),
                "low": Metric.low(torch.tensor([4.0])),
            },
        ]
    )
    assert table.compute() == {"a": 9 / 4, "low": -1.0}


def test_a_metric_that_some_batches_lack_counts_where_it_is():
    table = MetricTable()
    table.update(
        [
            {"loss": Metric.mean(torch.tensor([1.0]))},
            {"loss": Metric.mean(torch.tensor([3.0])), "entropy": Metric.mean(torch.tensor([5.0]))},
        ]
    )
    assert table.compute() == {"loss": 2.0, "entropy": 5.0}


def test_a_metric_without_weight_is_left_out():
    table = MetricTable()
    table.update([{"a": Metric.mean(torch.ones(2), torch.zeros(2)), "b": Metric.mean(torch.ones(1))}])
    assert table.compute() == {"b": 1.0}


def test_a_second_update_is_refused():
    table = MetricTable()
    table.update([{"a": Metric.mean(torch.ones(1))}])
    with pytest.raises(RuntimeError, match="one update"):
        table.update([{"a": Metric.mean(torch.ones(1))}])


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 3)), min_size=2, max_size=12), st.data())
def test_any_cut_gives_the_same_mean(pairs, data):
    values = torch.tensor([v for v, _ in pairs])
    weights = torch.tensor([w for _, w in pairs])
    cut = data.draw(st.integers(1, len(pairs) - 1))
    whole, parts = MetricTable(), MetricTable()
    whole.update([{"m": Metric.mean(values, weights)}])
    parts.update(
        [{"m": Metric.mean(values[:cut], weights[:cut])}, {"m": Metric.mean(values[cut:], weights[cut:])}]
    )
    assert whole.compute()["m"] == pytest.approx(parts.compute()["m"], abs=1e-5)


@pytest.mark.parametrize("how", ["min", "max"])
def test_an_extreme_counts_where_any_part_has_weight(how):
    """A part in which no token counts brings an infinity of no weight, wherever it stands."""
    nothing = Metric(torch.tensor(torch.inf if how == "min" else -torch.inf), torch.tensor(0.0), how)
    something = Metric(torch.tensor(0.7), torch.tensor(1.0), how)
    for parts in ([nothing, something], [something, nothing]):
        merged = merge_metrics([{"ratio": part} for part in parts])["ratio"]
        assert (merged.value.item(), merged.weight.item()) == (pytest.approx(0.7), 1.0)
    assert merge_metrics([{"ratio": nothing}, {"ratio": nothing}])["ratio"].weight == 0
