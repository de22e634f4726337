"""SFT through Lightning, against golden numbers and the formula."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from lit_align.algorithms.sft import SFT
from lit_align.batches import Forest

CASES = [
    "nll", "nll_b", "nll_completion_only", "nll_num_items", "nll_two_micro_batches",
    "nll_completion_only_two_micro", "nll_padding_free", "dft", "dft_completion_only",
]  # fmt: skip


def forest(rows: list[dict], completion_only: bool) -> Forest:
    if completion_only:
        return Forest.from_lists([r["prompt_ids"] for r in rows], [[r["completion_ids"]] for r in rows])
    return Forest.from_lists([[] for _ in rows], [[r["prompt_ids"] + r["completion_ids"]] for r in rows])


def test_every_golden_case_is_here(golden):
    assert sorted(golden("sft")["by_id"]) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_goldens(golden, golden_models, one_step, name):
    data = golden("sft")
    case = data["by_id"][name]
    hparams, expected = case["hparams"], case["formula_f64"]
    rows = data["batches"][case["batch"]]["rows"]
    size = len(rows) // hparams["micro_batches"]
    batches = [forest(rows[i : i + size], hparams["completion_only_loss"]) for i in range(0, len(rows), size)]
    model = AutoModelForCausalLM.from_pretrained(golden_models / "policy")
    run = one_step(SFT(model, loss=hparams["loss_type"]), batches)

    # The peer may be told a number of tokens from outside; ours is the window's own, by construction.
    tokens = sum(float(b.weights.sum()) for b in batches)
    scale = (hparams["num_items_in_batch"] or tokens) / tokens
    assert run.metrics["loss"] == pytest.approx(expected["loss"] * scale, rel=1e-5)
    assert run.grad_norm == pytest.approx(expected["grad_norm"] * scale, rel=1e-4)
    for key, values in expected["grads"].items():
        got = run.grads[key].flatten()[: len(values)] / scale
        torch.testing.assert_close(got, torch.tensor(values), rtol=1e-3, atol=1e-5)
    metrics = expected.get("metrics", {})
    for key in ("entropy", "mean_token_accuracy", "num_tokens"):
        if key in metrics:
            assert run.metrics[key] == pytest.approx(metrics[key], rel=1e-4), key


def test_neftune_changes_training_and_nothing_else(golden_models, one_step):
    def module(alpha):
        model = AutoModelForCausalLM.from_pretrained(golden_models / "policy")
        return SFT(model, neftune_alpha=alpha)

    batch = Forest.from_lists([[5, 6, 7]], [[[8, 9, 2]]])
    plain, noisy = one_step(module(None), [batch]), one_step(module(5.0), [batch])
    assert plain.metrics["loss"] != noisy.metrics["loss"]
    quiet, loud = module(None), module(5.0)
    with torch.no_grad():
        before, after = quiet.eval().score(batch).logps, loud.eval().score(batch).logps
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_row_weights_weigh_tokens(golden_models, one_step):
    """Weights 1 and 3: (1 * sum of the first + 3 * sum of the second) / (1 * 2 + 3 * 2)."""
    rows = [[5, 6], [9, 2]]
    model = AutoModelForCausalLM.from_pretrained(golden_models / "policy")
    batch = Forest.from_lists([[4], [7]], [[rows[0]], [rows[1]]], weights=[[[1, 1]], [[3, 3]]])
    module = SFT(model)
    with torch.no_grad():
        first, second = batch.sum_per_completion(module.score(batch).logps).tolist()
    assert one_step(module, [batch]).metrics["loss"] == pytest.approx(-(first + 3 * second) / 8, rel=1e-5)


def test_router_loss_is_added(one_step):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=37,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    batch = Forest.from_lists([[1, 2]], [[[3, 4, 5]]])
    model = MixtralForCausalLM(config)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    without = one_step(SFT(model), [batch]).metrics
    model.load_state_dict(state)
    added = one_step(SFT(model, router_loss_weight=0.5), [batch]).metrics
    assert added["loss"] == pytest.approx(without["loss"] + 0.5 * added["aux_loss"], rel=1e-5)


def test_an_unknown_loss_names_the_known():
    with pytest.raises(ValueError, match="nll, dft"):
        SFT("some/model", loss="mse")  # type: ignore[arg-type]
