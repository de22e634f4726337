"""The divergence of two models tile by tile, against all logits at once and against reference numbers."""

import pytest
import torch

from lit_align.batches import Forest
from lit_align.functional.divergence import generalised_jsd
from lit_align.scoring import divergence_head as module
from lit_align.scoring.attention import install
from lit_align.scoring.divergence_head import divergence_loss
from lit_align.scoring.flat import hidden_states
from lit_align.scoring.head import Head, plain_head
from lit_align.scoring.layout import flat_layout

ROWS, VOCABULARY = 13, 17


def tensors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, 6, dtype=dtype, requires_grad=True)
    bias = torch.randn(VOCABULARY, dtype=dtype, requires_grad=True)
    teacher = torch.randn(ROWS, 4, dtype=dtype), torch.randn(VOCABULARY, 4, dtype=dtype)
    return hidden, weight, bias, *teacher, torch.rand(ROWS, dtype=dtype)


def jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    if beta in (0.0, 1.0):
        p, q = (log_t, log_s) if beta == 0.0 else (log_s, log_t)
        return (p.exp() * (p - q)).sum(-1)
    log_m = ((1 - beta) * log_s.exp() + beta * log_t.exp()).log()
    to_m = [(p.exp() * (p - log_m)).sum(-1) for p in (log_t, log_s)]
    return beta * to_m[0] + (1 - beta) * to_m[1]


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rows", [100, 4], ids=["one tile", "four tiles"])
def test_equals_autograd_through_all_logits(beta, rows, monkeypatch):
    monkeypatch.setattr(module, "chunk_rows", lambda vocabulary: rows)
    hidden, weight, bias, teacher_hidden, teacher_weight, weights = tensors()
    head = Head(weight, bias, softcap=4.0, scale=1 / 0.7)
    total, each = divergence_loss(
        hidden, head, teacher_hidden, Head(teacher_weight, scale=1 / 0.7), weights, beta=beta
    )
    student = 4.0 * torch.tanh((hidden @ weight.T + bias) / 4.0) / 0.7
    expected = jsd(student, teacher_hidden @ teacher_weight.T / 0.7, beta)
    torch.testing.assert_close(each, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(total, (expected * weights).sum(), rtol=1e-10, atol=1e-10)
    inputs = (hidden, weight, bias)
    grads = torch.autograd.grad(1.3 * total, inputs)
    exact = torch.autograd.grad(1.3 * (expected * weights).sum(), inputs)
    torch.testing.assert_close(grads, exact, rtol=1e-10, atol=1e-10)


def test_no_token_at_all_gives_no_gradient():
    hidden, weight, _, teacher_hidden, teacher_weight, weights = tensors()
    total, each = divergence_loss(
        hidden[:0], Head(weight), teacher_hidden[:0], Head(teacher_weight), weights[:0]
    )
    total.backward()
    assert len(each) == 0
    assert total.item() == 0
    assert weight.grad.abs().sum() == 0


def test_without_gradients_only_values():
    hidden, weight, _, teacher_hidden, teacher_weight, weights = tensors()
    with torch.no_grad():
        total, each = divergence_loss(hidden, Head(weight), teacher_hidden, Head(teacher_weight), weights)
    assert not total.requires_grad
    expected, _ = generalised_jsd(hidden @ weight.T, teacher_hidden @ teacher_weight.T)
    torch.testing.assert_close(each, expected)


def test_two_vocabularies_are_refused():
    hidden, weight, _, teacher_hidden, teacher_weight, weights = tensors()
    with pytest.raises(ValueError, match="the student has 17 tokens and the teacher 16"):
        divergence_loss(hidden, Head(weight), teacher_hidden, Head(teacher_weight[:16]), weights)


CASES = [
    "gkd_beta0",
    "gkd_beta0.5",
    "gkd_beta1",
    "gkd_beta0.1_num_items",
    "distillation_beta1",
    "distillation_beta0.5_temperature",
    "distillation_beta0_num_items",
]


@pytest.mark.parametrize("name", CASES)
def test_reference_numbers(golden, golden_models, name):
    """Loss and gradients of two whole models in flat rows; GKD's temperature is one of sampling only."""
    from transformers import AutoModelForCausalLM

    content = golden("distill")
    assert set(CASES) == set(content["by_id"])
    case = content["by_id"][name]
    batch_of_case = content["batches"][case["batch"]]
    rows, options = batch_of_case["rows"], case["hparams"]
    batch = Forest.from_lists([r["prompt_ids"] for r in rows], [[r["completion_ids"]] for r in rows])
    layout = flat_layout(batch)
    temperature = 1.0 if name.startswith("gkd") else options["temperature"]
    models, states = {}, {}
    for role, path in batch_of_case["models"].items():
        models[role] = AutoModelForCausalLM.from_pretrained(golden_models / path, dtype=torch.float64)
        assert install(models[role])
        states[role] = hidden_states(models[role], layout)[layout.predictors]
    heads = {role: plain_head(model, temperature) for role, model in models.items()}
    total, each = divergence_loss(
        states["student"],
        heads["student"],
        states["teacher"],
        heads["teacher"],
        batch.weights.double()[layout.scored],
        beta=options["beta"],
    )
    expected = case["formula_f64"]
    per_token = torch.tensor([x for row in case["per_token_f64"] for x in row], dtype=torch.float64)
    # The library's norms and rotations run in float32 whatever the weights are: a few units of 1e-7.
    torch.testing.assert_close(each, per_token, rtol=1e-6, atol=1e-9)
    loss = total / (options["num_items_in_batch"] or len(each))
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6)
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-5)
    loss.backward()
    parameters = dict(models["student"].named_parameters())
    for key, values in expected["grads"].items():
        found = parameters[key].grad.flatten()[: len(values)]
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=1e-5, atol=1e-7)
