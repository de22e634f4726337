"""Log-probs of tokens, and statistics of the distributions they come from."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional import logprobs
from lit_align.functional.logprobs import (
    TOKEN_STATISTICS,
    entropy,
    log_sum_p2,
    target_logps,
    token_statistics,
)

rows = st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=5)


def test_by_hand():
    """Logits log(1, 2, 5): p = 1/8, 1/4, 5/8. log ¼ = -1.386294; entropy ⅛ log 8 + ¼ log 4 + ⅝ log 1.6 =
    0.259930 + 0.346574 + 0.293752 = 0.900256; Σ p² = 30/64, log -0.757686; mean logit log(10)/3 = 0.767528.
    """
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]).log()
    found = token_statistics(logits, torch.tensor([1, 2]), TOKEN_STATISTICS)
    assert set(found) == {"logps", "entropy", "log_sum_p2", "mean_logit", "top1"}
    torch.testing.assert_close(found["logps"], torch.tensor([-1.386294, math.log(5 / 8)]))
    torch.testing.assert_close(found["entropy"], torch.tensor([0.900256] * 2))
    torch.testing.assert_close(found["log_sum_p2"], torch.tensor([-0.757686] * 2))
    torch.testing.assert_close(found["mean_logit"], torch.tensor([0.767528] * 2))
    assert found["top1"].tolist() == [0.0, 1.0]


def test_only_what_is_asked_for_is_computed():
    assert set(token_statistics(torch.zeros(2, 3), torch.tensor([0, 1]), frozenset({"top1"}))) == {
        "logps",
        "top1",
    }
    assert set(token_statistics(torch.zeros(2, 3), torch.tensor([0, 1]))) == {"logps"}


@given(rows)
def test_against_plain_python(values):
    """log p = z_y - log Σ e^z, with the entropy and Σ p² summed from p, in Python floats."""
    targets = [i % 4 for i in range(len(values))]
    found = token_statistics(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(targets),
        {"entropy", "log_sum_p2", "mean_logit"},
    )
    for i, (row, target) in enumerate(zip(values, targets, strict=True)):
        total = sum(math.exp(z) for z in row)
        p = [math.exp(z) / total for z in row]
        assert found["logps"][i].item() == pytest.approx(row[target] - math.log(total), rel=1e-9, abs=1e-9)
        bits = -sum(x * math.log(x) for x in p if x)
        assert found["entropy"][i].item() == pytest.approx(bits, rel=1e-6, abs=1e-9)
        squares = math.log(sum(x * x for x in p))
        assert found["log_sum_p2"][i].item() == pytest.approx(squares, rel=1e-9, abs=1e-9)
        assert found["mean_logit"][i].item() == pytest.approx(sum(row) / 4, rel=1e-9, abs=1e-9)


@given(rows, st.floats(-100, 100))
def test_a_shift_of_the_logits_changes_nothing_but_their_mean(values, shift):
    logits = torch.tensor(values, dtype=torch.float64)
    targets = torch.zeros(len(values), dtype=torch.long)
    wanted = {"entropy", "log_sum_p2", "top1"}
    before, after = (token_statistics(z, targets, wanted) for z in (logits, logits + shift))
    for name in before:
        if name != "top1":  # a shift can round two near logits to the same number
            torch.testing.assert_close(before[name], after[name], rtol=1e-7, atol=1e-9)


@given(rows)
def test_bounds(values):
    logits = torch.tensor(values)
    assert (entropy(logits) >= 0).all()
    assert (entropy(logits) <= math.log(4) + 1e-5).all()
    assert (log_sum_p2(logits) <= 1e-5).all()
    assert (log_sum_p2(logits) >= -math.log(4) - 1e-5).all()
    # log Σ p² = log E[p] >= E[log p] = -entropy
    assert (log_sum_p2(logits) >= -entropy(logits) - 1e-4).all()


def test_uniform_and_certain():
    logits = torch.tensor([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 1e4]])
    torch.testing.assert_close(entropy(logits), torch.tensor([math.log(4), 0.0]))
    torch.testing.assert_close(log_sum_p2(logits), torch.tensor([-math.log(4), 0.0]))


def test_a_token_that_cannot_occur():
    """Logits of -inf, as a vocabulary mask leaves them: p = 0 adds nothing to any statistic, and no NaN."""
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    found = token_statistics(logits, torch.tensor([0]), {"entropy", "log_sum_p2"})
    found["logps"].sum().backward()
    torch.testing.assert_close(found["logps"].detach(), torch.tensor([-math.log(2)]))
    torch.testing.assert_close(found["entropy"], torch.tensor([math.log(2)]))
    torch.testing.assert_close(found["log_sum_p2"], torch.tensor([-math.log(2)]))
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.5, 0.0]]))


def test_extreme_logits_are_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    found = token_statistics(logits, torch.tensor([1]), TOKEN_STATISTICS)
    found["logps"].sum().backward()
    assert found["logps"].tolist() == [-2e4]
    assert all(torch.isfinite(value).all() for value in found.values())
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_single_precision(dtype):
    """The log-probs are those of the rounded logits, without further rounding."""
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(6, 500, generator=generator)).to(dtype).requires_grad_()
    targets = torch.arange(6)
    found = token_statistics(logits, targets, TOKEN_STATISTICS)
    exact = token_statistics(logits.detach().double(), targets, TOKEN_STATISTICS)
    for name, values in found.items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.detach().double(), exact[name], rtol=1e-5, atol=1e-5)
    found["logps"].sum().backward()
    assert logits.grad.dtype == dtype


def test_gradcheck_and_statistics_without_gradient(monkeypatch):
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda z: target_logps(z, targets), logits)
    found = token_statistics(logits, targets, TOKEN_STATISTICS)
    assert {name for name, value in found.items() if value.requires_grad} == {"logps", "entropy"}
    monkeypatch.setattr(logprobs, "_LOGITS_AT_A_TIME", 10)  # two rows
    assert torch.autograd.gradcheck(lambda z: token_statistics(z, targets, {"entropy"})["entropy"], logits)


def test_the_gradient_of_the_entropy():
    """p = 1/8, 1/4, 5/8 and H = 0.900256: dH/dz = -p (log p + H) = 0.147398, 0.121510, -0.268908."""
    logits = torch.tensor([[1.0, 2.0, 5.0, 0.0]]).log().requires_grad_()  # the last cannot occur
    token_statistics(logits, torch.tensor([0]), {"entropy"})["entropy"].sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.147398, 0.121510, -0.268908, 0.0]]))


def test_the_gradient_is_one_hot_less_the_probabilities():
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log().requires_grad_()
    target_logps(logits, torch.tensor([1])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1 / 8, 3 / 4, -5 / 8]]))


def test_the_pieces_are_put_together_in_order(monkeypatch):
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    whole = token_statistics(logits, targets, TOKEN_STATISTICS)
    monkeypatch.setattr(logprobs, "_LOGITS_AT_A_TIME", 12)  # two rows
    pieces = token_statistics(logits, targets, TOKEN_STATISTICS)
    for name in TOKEN_STATISTICS:
        assert torch.equal(whole[name], pieces[name])


def test_no_token_at_all():
    found = token_statistics(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), TOKEN_STATISTICS)
    assert all(len(value) == 0 for value in found.values())


def test_wrong_shapes_and_names_are_refused():
    with pytest.raises(ValueError, match=r"logits \[N, V\] and targets \[N\], got \[1, 2, 3\] and \[1, 2\]"):
        token_statistics(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"unknown token statistics \['perplexity'\]; there are \['entropy'"):
        token_statistics(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), {"perplexity"})


@pytest.mark.parametrize("name", ["policy", "policy_left_padding", "policy_temperature", "reference"])
def test_reference_numbers(golden, golden_folder, name):
    """Unpadded, in float64; the case of left padding has the same numbers, as it must."""
    from transformers import AutoModelForCausalLM

    content = golden("logprobs")
    case = content["by_id"][name]
    path = golden_folder / "models" / case["hparams"]["model"]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    ours = {
        "logps": "log_probs",
        "entropy": "entropy",
        "log_sum_p2": "log_sum_sq_probs",
        "mean_logit": "mean_logits",
        "top1": "is_top1",
    }
    for i, row in enumerate(content["batches"][case["batch"]]["rows"]):
        ids = torch.tensor(row["prompt_ids"] + row["completion_ids"])
        start = len(row["prompt_ids"])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, start - 1 : -1] / case["hparams"]["temperature"]
        found = token_statistics(logits, ids[start:], TOKEN_STATISTICS)
        for key, theirs in ours.items():
            expected = torch.tensor(case["formula_f64"][theirs][i], dtype=torch.float64)
            torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=1e-6)
            peer = torch.tensor(case["expected"][theirs][i], dtype=torch.float64)
            torch.testing.assert_close(found[key], peer, rtol=1e-4, atol=1e-5)
