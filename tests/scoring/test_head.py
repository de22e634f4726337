"""The fused head against plain autograd through a log-softmax, for every loss there is."""

import pytest
import torch
from torch import nn

from lit_align.algorithms.dpo import DPO
from lit_align.algorithms.sft import SFT
from lit_align.batches import Forest
from lit_align.losses.preference import PREFERENCE_LOSSES
from lit_align.outputs import LossOutput, Metric, Scores
from lit_align.scoring import head_work as fused
from lit_align.scoring.blocks import blocks
from lit_align.scoring.head import Head, chunk_rows, head_loss, head_scores

VOCABULARY, WIDTH = 29, 8
ALL = frozenset({"entropy", "log_sum_p2", "mean_logit", "top1"})


def forest(count: int = 6, seed: int = 0, completions: int = 2) -> Forest:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    batch = Forest.from_lists(
        [ids(1, 4) for _ in range(count)], [[ids(1, 9) for _ in range(completions)] for _ in range(count)]
    )
    reference = -3 * torch.rand(len(batch.completion_ids), generator=generator, dtype=torch.float64)
    return batch.with_token_column("reference_logps", reference)


def tensors(batch: Forest, dtype=torch.float64):
    torch.manual_seed(1)
    scored = batch.weights.nonzero().squeeze(1)
    hidden = torch.randn(len(scored), WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.randn(VOCABULARY, dtype=dtype, requires_grad=True)
    return scored, hidden, weight, bias


def plain(hidden, head, targets, batch, scored, loss, statistics=frozenset()):
    """The definition: all logits, log-softmax, autograd."""
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_probs = (logits * head.scale).log_softmax(-1)
    logps = log_probs.gather(1, targets[:, None])[:, 0]
    found = {"logps": logps}
    if "log_sum_p2" in statistics:
        found["log_sum_p2"] = (2 * log_probs).logsumexp(-1).detach()
    if "entropy" in statistics:
        found["entropy"] = -(log_probs.exp() * log_probs).sum(-1)
    size = len(batch.completion_ids)
    return loss(Scores(**{n: v.new_zeros(size).index_put((scored,), v) for n, v in found.items()}), batch)


def objectives():
    options = {"exo_pair": {"label_smoothing": 0.1}, "cdpo": {"label_smoothing": 0.1}}
    for name in PREFERENCE_LOSSES:
        yield f"dpo {name}", DPO("some/model", loss=name, **options.get(name, {}))
    for divergence in ("forward_kl", "js_divergence"):
        yield f"dpo {divergence}", DPO("some/model", f_divergence=divergence)
    yield "dpo ld", DPO("some/model", ld_alpha=0.4)
    yield "dpo wpo", DPO("some/model", wpo=True)
    yield "dpo list", DPO("some/model", loss={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0})
    yield "sft nll", SFT("some/model")
    yield "sft dft", SFT("some/model", loss="dft")


OBJECTIVES = dict(objectives())


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("cut", ["one block", "many blocks", "two passes"])
def test_fused_equals_plain(name, cut, monkeypatch):
    module = OBJECTIVES[name]
    options = module.score_options(logging=False)
    couples = options.get("couples_batch", False)
    if cut == "two passes":
        monkeypatch.setattr(fused, "LARGEST_BLOCK", 1)
        monkeypatch.setattr(fused, "chunk_rows", lambda vocabulary: 3)
    batch = forest()
    scored, hidden, weight, bias = tensors(batch)
    head = Head(weight, bias, softcap=3.0, scale=1 / 0.7)
    targets = batch.completion_ids[scored]
    parts = blocks(batch, scored, 10**6 if cut == "one block" else 5, whole=couples)
    assert (len(parts) == 1) == (cut == "one block" or couples)
    ours = head_loss(hidden, head, targets, parts, module.loss, options["statistics"])
    theirs = plain(hidden, head, targets, batch, scored, module.loss, options["statistics"])
    torch.testing.assert_close(ours.total, theirs.total, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.weight, theirs.weight)
    found = torch.autograd.grad(1.7 * ours.total, (hidden, weight, bias))
    wanted = torch.autograd.grad(1.7 * theirs.total, (hidden, weight, bias))
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    for key, metric in theirs.metrics.items():
        torch.testing.assert_close(ours.metrics[key].value, metric.value, rtol=1e-5, atol=1e-5)


def total_nll(scores: Scores, batch: Forest) -> LossOutput:
    return LossOutput(-(scores.logps * batch.weights).sum(), batch.weights.sum(), {})


def entropy_bonus(scores: Scores, batch: Forest) -> LossOutput:
    """Log-probs and entropies coupled within a token: neither is a constant to the other."""
    each = -scores.logps - 0.3 * scores.entropy + 0.1 * scores.logps * scores.entropy
    return LossOutput((each * batch.weights).sum(), batch.weights.sum(), {})


def entropy_alone(scores: Scores, batch: Forest) -> LossOutput:
    return LossOutput(-(scores.entropy.square() * batch.weights).sum(), batch.weights.sum(), {})


@pytest.mark.parametrize("loss", [entropy_bonus, entropy_alone])
@pytest.mark.parametrize("cut", ["one block", "many blocks", "two passes"])
def test_the_entropy_has_a_gradient(loss, cut, monkeypatch):
    if cut == "two passes":
        monkeypatch.setattr(fused, "LARGEST_BLOCK", 1)
        monkeypatch.setattr(fused, "chunk_rows", lambda vocabulary: 3)
    batch = forest()
    scored, hidden, weight, bias = tensors(batch)
    head, targets = Head(weight, bias, softcap=3.0, scale=1 / 0.7), batch.completion_ids[scored]
    parts, wanted = blocks(batch, scored, 10**6 if cut == "one block" else 5), frozenset({"entropy"})
    ours = head_loss(hidden, head, targets, parts, loss, wanted).total
    theirs = plain(hidden, head, targets, batch, scored, loss, wanted).total
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(ours, (hidden, weight, bias))
    expected = torch.autograd.grad(theirs, (hidden, weight, bias))
    for got, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)


def test_a_token_that_cannot_occur_has_no_part_in_the_entropy():
    """A bias of -inf takes token 3 out: the gradient is that of the 28 others, and none of it is NaN."""
    batch = forest(3)
    scored, hidden, weight, bias = tensors(batch)
    bias.data[3] = -torch.inf
    targets = batch.completion_ids[scored]
    targets = torch.where(targets == 3, 4, targets)
    left = [i for i in range(VOCABULARY) if i != 3]
    renamed = torch.tensor([left.index(int(t)) for t in targets])
    total = head_loss(
        hidden, Head(weight, bias), targets, blocks(batch, scored, 4), entropy_bonus, frozenset({"entropy"})
    ).total
    fewer = Head(weight[left], bias[left])
    expected = plain(hidden, fewer, renamed, batch, scored, entropy_bonus, frozenset({"entropy"})).total
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    grads, exact = (torch.autograd.grad(t, (hidden, weight)) for t in (total, expected))
    torch.testing.assert_close(grads, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("loss", "wanted"), [("nll", frozenset()), ("entropy", frozenset({"entropy"}))], ids=["nll", "entropy"]
)
def test_gradients_are_the_differences(loss, wanted):
    """gradcheck's question, asked along 20 directions: it runs a graph twice, and ours is good for once."""
    batch = forest(3)
    scored, *inputs = tensors(batch)
    targets = batch.completion_ids[scored]
    function = {"nll": total_nll, "entropy": entropy_bonus}[loss]

    def run(hidden, weight, bias):
        head = Head(weight, bias, softcap=5.0, scale=0.8)
        return head_loss(hidden, head, targets, blocks(batch, scored, 4), function, wanted).total

    grads = torch.autograd.grad(run(*inputs), inputs)
    for seed in range(20):
        torch.manual_seed(seed)
        direction = [torch.randn_like(t) for t in inputs]
        with torch.no_grad():
            ahead, behind = (
                run(*[t + step * d for t, d in zip(inputs, direction, strict=True)]) for step in (1e-5, -1e-5)
            )
        slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        torch.testing.assert_close((ahead - behind) / 2e-5, slope, rtol=1e-7, atol=1e-7)


def test_a_second_backward_is_refused():
    batch = forest(2)
    scored, hidden, weight, _ = tensors(batch)
    targets = batch.completion_ids[scored]
    total = head_loss(hidden, Head(weight), targets, blocks(batch, scored, 4), total_nll).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        total.backward()


def test_a_frozen_head_gets_no_gradient_and_hidden_states_do():
    batch = forest()
    scored, hidden, weight, _ = tensors(batch)
    weight.requires_grad_(False)
    targets = batch.completion_ids[scored]
    total = head_loss(hidden, Head(weight), targets, blocks(batch, scored, 5), total_nll).total
    total.backward()
    assert weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_a_tied_head_sums_both_gradients():
    torch.manual_seed(0)
    embedding = nn.Embedding(VOCABULARY, WIDTH, dtype=torch.float64)
    batch = forest()
    scored = batch.weights.nonzero().squeeze(1)
    targets = batch.completion_ids[scored]

    def gradient(run):
        embedding.zero_grad()
        run(embedding(targets.flip(0)), Head(embedding.weight)).total.backward()
        return embedding.weight.grad.clone()

    ours = gradient(lambda h, head: head_loss(h, head, targets, blocks(batch, scored, 5), total_nll))
    theirs = gradient(lambda h, head: plain(h, head, targets, batch, scored, total_nll))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_without_gradients_nothing_is_made():
    batch = forest()
    scored, hidden, weight, _ = tensors(batch)
    targets = batch.completion_ids[scored]
    with torch.no_grad():
        output = head_loss(hidden, Head(weight), targets, blocks(batch, scored, 5), total_nll)
    assert not output.total.requires_grad
    whole = head_scores(hidden, Head(weight), targets, ALL)
    torch.testing.assert_close(-whole["logps"].sum(), output.total)
    assert set(whole) == {"logps", *ALL}


def test_bf16_accumulates_in_float32():
    """The error against float64 stays that of the rounded inputs, however many rows are summed."""
    batch = forest(40)
    scored, hidden, weight, _ = tensors(batch)
    targets = batch.completion_ids[scored]
    low = [t.detach().to(torch.bfloat16).requires_grad_() for t in (hidden, weight)]
    high = [t.detach().double().requires_grad_() for t in low]
    ours = head_loss(low[0], Head(low[1]), targets, blocks(batch, scored, 16), total_nll)
    theirs = plain(high[0], Head(high[1]), targets, batch, scored, total_nll)
    assert ours.total.dtype == torch.float32
    assert ours.total.item() == pytest.approx(theirs.total.item(), rel=5e-3)
    ours.total.backward()
    theirs.total.backward()
    for mine, exact in zip(low, high, strict=True):
        assert mine.grad.dtype == torch.bfloat16
        error = (mine.grad.double() - exact.grad).norm() / exact.grad.norm()
        assert error < 0.01


def test_autocast_multiplies_in_its_dtype():
    batch = forest()
    scored, hidden, weight, _ = tensors(batch, torch.float32)
    targets = batch.completion_ids[scored]
    exact = head_loss(hidden, Head(weight), targets, blocks(batch, scored, 16), total_nll).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = head_loss(hidden, Head(weight), targets, blocks(batch, scored, 16), total_nll).total
    assert cast.item() != exact.item()
    assert cast.item() == pytest.approx(exact.item(), rel=0.02)
    cast.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_a_loss_without_gradient_gives_none():
    batch = forest()
    scored, hidden, weight, _ = tensors(batch)
    targets = batch.completion_ids[scored]

    def constant(scores: Scores, forest: Forest) -> LossOutput:
        zero = torch.zeros((), dtype=torch.float64)
        return LossOutput(zero, torch.ones(()), {"m": Metric.mean(scores.logps)})

    head_loss(hidden, Head(weight), targets, blocks(batch, scored, 5), constant).total.backward()
    assert float(hidden.grad.abs().sum()) == 0
    assert float(weight.grad.abs().sum()) == 0


def test_chunks_follow_the_vocabulary():
    assert chunk_rows(100_000) == 256
    assert chunk_rows(512) == 2048


def test_exponentials_in_pieces(monkeypatch):
    monkeypatch.setattr(fused, "PIECE", 2 * 50)
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 10
    tile = logits.clone()
    largest, sums = fused.exponentiate(tile)
    assert torch.equal(largest, logits.amax(-1))
    assert torch.equal(tile, (logits - logits.amax(-1, keepdim=True)).exp())
    assert torch.allclose(sums, tile.sum(-1), rtol=1e-6)


@pytest.mark.parametrize("statistics", [frozenset(), frozenset({"entropy"})])
def test_tiles_that_overwrite_each_other_score_alike(statistics, monkeypatch):
    states, weight = torch.randn(11, 8), torch.randn(50, 8)
    targets = torch.arange(11)
    monkeypatch.setattr(fused, "ROWS", 4)
    monkeypatch.setattr(fused, "LOGITS", 1)
    found = head_scores(states, Head(weight), targets, statistics)
    wanted = (states @ weight.T).log_softmax(-1)
    assert torch.allclose(found["logps"], wanted.gather(1, targets[:, None])[:, 0], atol=1e-5)
    if statistics:
        assert torch.allclose(found["entropy"], -(wanted.exp() * wanted).sum(-1), atol=1e-5)
