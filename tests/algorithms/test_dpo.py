"""DPO through Lightning, against golden numbers and what must hold by definition."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_align.algorithms.dpo import DPO
from lit_align.batches import Forest
from lit_align.scoring.references import EMA, AdapterOff, FromPath, FrozenCopy, NoReference

NAMES = {"label_smoothing": "label_smoothing", "beta": "beta", "ld_alpha": "ld_alpha"}
NAMES |= {"use_weighting": "wpo", "f_divergence_type": "f_divergence", "f_alpha_divergence_coef": "f_alpha"}
NAMES |= {"discopop_tau": "discopop_tau"}
IGNORED = {
    "loss_type",
    "loss_weights",
    "max_length",
    "gradient_accumulation_steps",
    "per_device_train_batch_size",
}


def arguments(hparams: dict[str, Any]) -> dict[str, Any]:
    """Our arguments for the peer's hyper-parameters."""
    assert set(hparams) <= NAMES.keys() | IGNORED, "a golden case with something we have no name for"
    ours = {NAMES[k]: v for k, v in hparams.items() if k in NAMES}
    # The peer's sft term is the token mean of a micro-batch; ours of that name is the paper's.
    losses = ["sft_token_mean" if name == "sft" else name for name in hparams["loss_type"]]
    if losses == ["sigmoid"]:
        # The peer ignores smoothing here (its quirk); ours refuses what has no effect.
        ours.pop("label_smoothing", None)
    ours["loss"] = dict(zip(losses, hparams.get("loss_weights", [1.0] * len(losses)), strict=True))
    return ours


def forest(rows: list[dict[str, Any]], max_length: int | None = None) -> Forest:
    prompts = [r["prompt_ids"] for r in rows]
    pairs = [[r["chosen_ids"], r["rejected_ids"]] for r in rows]
    if max_length is not None:
        pairs = [
            [c[: max(max_length - len(p), 0)] for c in both] for p, both in zip(prompts, pairs, strict=True)
        ]
        prompts = [p[:max_length] for p in prompts]
    return Forest.from_lists(prompts, pairs)


def policy(golden_models):
    return AutoModelForCausalLM.from_pretrained(golden_models / "policy")


CASES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm", "sigmoid_beta0.5_b",
    "ipo_b", "sigmoid_label_smoothing_ignored", "aot_smoothed", "aot_unpaired_smoothed",
    "robust_no_smoothing", "f_forward_kl", "f_js", "f_alpha_0.5", "f_alpha_1_is_reverse_kl",
    "f_js_ipo", "ld_alpha_0.4", "ld_alpha_0", "wpo_sigmoid", "wpo_ipo", "sigmoid_max_length_14",
    "sigmoid_fully_truncated_row", "ipo_fully_truncated_row", "sft_c", "sigmoid_two_micro_batches",
    "sft_two_micro_batches", "mpo_sigmoid_bco_sft",
]  # fmt: skip


def test_every_golden_case_is_here(golden):
    assert sorted(golden("dpo")["by_id"]) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_goldens(golden, golden_models, one_step, name):
    data = golden("dpo")
    case = data["by_id"][name]
    hparams, expected = case["hparams"], case["formula_f64"]
    rows = data["batches"][case["batch"]]["rows"]
    size = hparams.get("per_device_train_batch_size", len(rows))
    batches = [forest(rows[i : i + size], hparams.get("max_length")) for i in range(0, len(rows), size)]
    module = DPO(
        policy(golden_models),
        reference=FromPath(str(golden_models / "reference")),
        loss_average="micro_batch" if name == "sft_two_micro_batches" else "window",
        **arguments(hparams),
    )
    run = one_step(module, batches)

    if name != "sft_two_micro_batches":  # its loss is a mean of means, which a metric never is
        assert run.metrics["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert run.grad_norm == pytest.approx(expected["grad_norm"], rel=1e-3)
    for key, values in expected["grads"].items():
        got = run.grads[key].flatten()[: len(values)]
        torch.testing.assert_close(
            got, torch.tensor(values), rtol=1e-3, atol=1e-5 * max(1, expected["grad_norm"])
        )
    metrics = expected.get("metrics", {})
    if "sft" in hparams["loss_type"] and len(hparams["loss_type"]) == 1:
        metrics = {k: v for k, v in metrics.items() if not k.startswith("rewards")}  # no reference is asked
    for key, value in metrics.items():
        assert run.metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("loss", ["sigmoid", "cdpo", "robust"])
def test_first_loss_is_ln_2(golden_models, one_step, loss):
    """Policy and reference agree at the start, even if the policy in memory is not the one on disk."""
    model = policy(golden_models)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    batch = Forest.from_lists([[5, 6, 7], [8]], [[[8, 9, 2], [4, 2]], [[11, 2], [12, 13, 2]]])
    run = one_step(DPO(model, loss=loss, label_smoothing=0.0 if loss == "sigmoid" else 0.1), [batch])
    assert run.metrics["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert run.metrics["rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_dropout_does_not_reach_the_policy(one_step):
    """A model with dropout everywhere still starts at ln 2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=31, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5
    )
    batch = Forest.from_lists([[5, 6, 7]], [[[8, 9, 2], [4, 2]]])
    assert one_step(DPO(GPT2LMHeadModel(config)), [batch]).metrics["loss"] == pytest.approx(
        math.log(2), rel=1e-6
    )


def test_no_reference_is_reference_free(golden, golden_models, one_step):
    """-logsigmoid(beta * (logp_w - logp_l))."""
    rows = golden("dpo")["batches"]["dpo_a"]["rows"]
    module = DPO(policy(golden_models), reference=NoReference(), beta=0.2)
    batch = forest(rows)
    with torch.no_grad():
        sums = batch.sum_per_completion(module.score(batch).logps)
    expected = -torch.nn.functional.logsigmoid(0.2 * (sums[0::2] - sums[1::2])).mean().item()
    assert one_step(module, [batch]).metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_ema_reference_follows_the_policy(golden_models, one_step):
    """After one step with interval 1: reference = 0.75 * start + 0.25 * policy."""
    model = policy(golden_models)
    start = {k: v.detach().clone() for k, v in model.named_parameters()}
    module = DPO(model, reference=EMA(alpha=0.25, interval=1), lr=1e-2)
    batch = Forest.from_lists([[5, 6, 7]], [[[8, 9, 2], [4, 2]]])
    one_step(module, [batch])
    now = dict(model.named_parameters())
    for name, value in module.reference.named_parameters():
        match = max((k for k in start if name.endswith(k)), key=len)
        torch.testing.assert_close(value, 0.75 * start[match] + 0.25 * now[match].detach())
    saved = module.saved_names()
    assert any(n.startswith("reference.") for n in saved)


def test_unequal_pairs_are_refused(golden_models):
    module = DPO(policy(golden_models))
    module.configure_model()
    with pytest.raises(ValueError, match="a chosen and a rejected"):
        module.prepare(Forest.from_lists([[1]], [[[2]]]))


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="label_smoothing"):
        DPO("some/model", label_smoothing=0.1)
    with pytest.raises(ValueError, match="did you mean 'sigmoid'"):
        DPO("some/model", loss="sigmoit")


def test_a_function_is_a_loss(golden, golden_models, one_step):
    def square(chosen_scores, rejected_scores, *, beta):
        return (1 - beta * (chosen_scores - rejected_scores)) ** 2

    rows = golden("dpo")["batches"]["dpo_a"]["rows"]
    module = DPO(policy(golden_models), reference=FromPath(str(golden_models / "reference")), loss=square)
    hinge = golden("dpo")["by_id"]["sigmoid"]["scores_f64"]
    expected = [
        (1 - 0.1 * (win - lose)) ** 2 for win, lose in zip(hinge["chosen"], hinge["rejected"], strict=True)
    ]
    assert one_step(module, [forest(rows)]).metrics["loss"] == pytest.approx(
        sum(expected) / len(expected), rel=1e-4
    )


@pytest.mark.parametrize("reference", [FrozenCopy, AdapterOff])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untouched_policy_wins_no_pair_whatever_is_logged(golden_models, reference, dtype):
    """Policy and reference are equal to the bit, so that every pair is a tie."""
    model: Any = policy(golden_models).to(dtype)
    if reference is AdapterOff:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    module = DPO(model, reference=reference())
    module.configure_model()
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 60, (length,), generator=generator).tolist()

    rows = [(ids(3 + i % 5), [ids(4 + i % 7), ids(6 + i % 4)]) for i in range(24)]
    batch = module.prepare(Forest.from_lists([p for p, _ in rows], [pair for _, pair in rows]))
    for logging in (False, True):
        options = module.score_options(logging=logging)
        assert bool(options["statistics"]) == logging
        parts = []

        def loss(scores, part, parts=parts):
            parts.append((scores.logps, part.token_columns["reference_logps"]))
            return module.loss(scores, part)

        metrics = module.policy(batch, loss=loss, **options).metrics
        assert all(torch.equal(own, theirs) for own, theirs in parts)
        assert metrics["rewards/accuracies"].value.item() == 0
