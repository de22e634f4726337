"""Our losses on the log-probs of the reference numbers, in float64: every case of four families.

What a model, an optimiser or a data pipeline does to these numbers is tested with the algorithms; here
the per-token log-probs are given, and each loss has to come out as the independent float64 calculation
has it. Supervised cases that also learn the prompt have no log-probs given: the tiny model computes them.
"""

import math

import pytest
import torch

from lit_align.functional.logprobs import target_logps
from lit_align.losses.ld_dpo import desensitised_logps
from lit_align.losses.objective import PreferenceObjective
from lit_align.losses.preference import Pair
from lit_align.losses.reward import bradley_terry, centering
from lit_align.losses.sft import dft, nll
from lit_align.losses.wpo import completion_weights, pair_weights

# fmt: off
DPO = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm", "sigmoid_beta0.5_b", "ipo_b",
    "sigmoid_label_smoothing_ignored", "aot_smoothed", "aot_unpaired_smoothed", "robust_no_smoothing",
    "f_forward_kl", "f_js", "f_alpha_0.5", "f_alpha_1_is_reverse_kl", "f_js_ipo", "ld_alpha_0.4",
    "ld_alpha_0", "wpo_sigmoid", "wpo_ipo", "sigmoid_max_length_14", "sigmoid_fully_truncated_row",
    "ipo_fully_truncated_row", "sft_c", "sigmoid_two_micro_batches", "sft_two_micro_batches",
    "mpo_sigmoid_bco_sft",
]
LEGACY = [
    "cdpo", "sigmoid", "reference_free", "alpha_divergence_1", "alpha_divergence_0.5", "js_divergence",
    "robust",
]
REWARD = ["plain", "plain_b", "margin", "center", "margin_center"]
SFT = [
    "nll", "nll_b", "nll_completion_only", "nll_num_items", "nll_two_micro_batches",
    "nll_completion_only_two_micro", "nll_padding_free", "dft", "dft_completion_only",
]
# fmt: on
# The given log-probs and the expected values are both rounded to about 16 digits.
FLOAT64 = {"rtol": 1e-9, "atol": 1e-10}


@pytest.mark.parametrize(
    ("family", "names"), [("dpo", DPO), ("dpo_legacy", LEGACY), ("reward", REWARD), ("sft", SFT)]
)
def test_no_case_is_left_out(golden, family, names):
    assert set(golden(family)["by_id"]) == set(names)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def pairs_of(rows, per_token, hparams):
    """The pairs of a batch as a loss sees them, from per-token log-probs: truncated, and desensitised."""
    flat = {"policy": [], "reference": []}
    lengths = []
    for row, logps in zip(rows, per_token, strict=True):
        room = max(0, hparams.get("max_length", math.inf) - len(row["prompt_ids"]))
        for side in ("chosen", "rejected"):
            kept = min(len(row[f"{side}_ids"]), room)
            lengths.append(kept)
            for model, values in flat.items():
                values.extend(logps[f"{model}_{side}"][:kept])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    shared = torch.tensor(lengths).view(-1, 2).amin(1).repeat_interleave(2)
    alpha = hparams.get("ld_alpha", 1.0)
    sums, plain = {}, {}
    for model, values in flat.items():
        logps, ones = float64(values), torch.ones(len(values))
        sums[model] = desensitised_logps(logps, ones, owner, shared, alpha=alpha).view(-1, 2)
        plain[model] = desensitised_logps(logps, ones, owner, shared, alpha=1.0).view(-1, 2)
    count = torch.tensor(lengths).view(-1, 2)
    return Pair(
        chosen_logps=sums["policy"][:, 0],
        rejected_logps=sums["policy"][:, 1],
        chosen_reference_logps=sums["reference"][:, 0],
        rejected_reference_logps=sums["reference"][:, 1],
        chosen_lengths=count[:, 0],
        rejected_lengths=count[:, 1],
        chosen_nll=-plain["policy"][:, 0],
    )


def objective_of(hparams):
    names = hparams["loss_type"]
    weights = hparams.get("loss_weights", [1.0] * len(names))
    # The peer's sft term is the token mean of its micro-batch; ours of the same name is per pair.
    losses = {{"sft": "sft_token_mean"}.get(n, n): w for n, w in zip(names, weights, strict=True)}
    return PreferenceObjective(
        losses,
        divergence=hparams.get("f_divergence_type", "reverse_kl"),
        alpha=hparams.get("f_alpha_divergence_coef"),
        beta=hparams["beta"],
        label_smoothing=hparams.get("label_smoothing", 0.0),
        tau=hparams.get("discopop_tau"),
    )


def select(pair, rows):
    return Pair(*(getattr(pair, field)[rows] for field in Pair.__dataclass_fields__))


@pytest.fixture
def dpo(golden):
    """``dpo(name)`` gives the case, its pairs, and its hyper-parameters."""
    content = golden("dpo")

    def read(name):
        case = content["by_id"][name]
        batch = content["batches"][case["batch"]]
        pair = pairs_of(batch["rows"], batch["per_token_logps_f64"], case["hparams"])
        return case, pair, dict(case["hparams"])

    return read


def golden_weights(golden, case):
    """WPO's weights of the pairs, from the per-token statistics where they are given."""
    if "wpo_weights_f64" not in case:
        return 1.0
    expected = float64(case["wpo_weights_f64"])
    if case["batch"] == "dpo_a":  # whose completions are, in this order, the rows of logprobs.json
        token = golden("logprobs")["by_id"]["policy"]["formula_f64"]
        owner = [i for i, row in enumerate(token["log_probs"]) for _ in row]
        logps, log_sum_p2 = (
            float64([x for row in token[key] for x in row]) for key in ("log_probs", "log_sum_sq_probs")
        )
        weights = completion_weights(logps, log_sum_p2, torch.ones(len(owner)), torch.tensor(owner), 8)
        torch.testing.assert_close(pair_weights(weights[::2], weights[1::2]), expected, **FLOAT64)
    return expected


@pytest.mark.parametrize("name", [name for name in DPO if not name.endswith(("micro_batches", "ignored"))])
def test_dpo(golden, dpo, name):
    case, pair, hparams = dpo(name)
    objective = objective_of(hparams)
    if "aot" not in name:  # there the scores are not what is compared
        for side in ("chosen", "rejected"):
            scores = objective.divergence(getattr(pair, f"{side}_logratios"))
            torch.testing.assert_close(scores, float64(case["scores_f64"][side]), **FLOAT64)
    weights = golden_weights(golden, case)
    expected = {{"sft": "sft_token_mean"}.get(k, k): float64(v) for k, v in case["per_pair_f64"].items()}
    values = objective.each(pair)
    if name.startswith("aot"):  # the peer's values come sorted, ours stand with their pairs
        left = pair.chosen_logratios if "unpaired" in name else pair.chosen_logps - pair.rejected_logps
        values = {key: value[left.argsort()] for key, value in values.items()}
    assert set(values) == set(expected)
    for key, value in values.items():
        if key == "sft_token_mean":  # the peer has one number for the batch; it is the mean of ours
            value = value.mean().expand_as(value)
        torch.testing.assert_close(value * weights, expected[key], **FLOAT64)
    loss = (objective(pair) * weights).mean()
    assert loss.item() == pytest.approx(case["formula_f64"]["loss"], rel=1e-9)
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in DPO if not name.endswith("micro_batches")])
def test_dpo_rewards(dpo, name):
    """They are β Δ, whatever the divergence."""
    case, pair, hparams = dpo(name)
    metrics = case["formula_f64"]["metrics"]
    chosen, rejected = hparams["beta"] * pair.chosen_logratios, hparams["beta"] * pair.rejected_logratios
    assert chosen.mean().item() == pytest.approx(metrics["rewards/chosen"], rel=1e-8)
    assert rejected.mean().item() == pytest.approx(metrics["rewards/rejected"], rel=1e-8)
    assert (chosen - rejected).mean().item() == pytest.approx(metrics["rewards/margins"], rel=1e-8)
    assert (chosen > rejected).double().mean().item() == metrics["rewards/accuracies"]


def test_smoothing_that_the_peer_ignores_is_refused(dpo):
    """A fault of the peer: with ``sigmoid`` it drops the label smoothing in silence. Ours says so, and gives
    the numbers of the case without it, and those of the formula as ``cdpo``.
    """
    case, pair, hparams = dpo("sigmoid_label_smoothing_ignored")
    with pytest.raises(ValueError, match="label_smoothing is given, but sigmoid would not use it; cdpo"):
        objective_of(hparams)
    loss = PreferenceObjective("sigmoid", beta=hparams["beta"])(pair).mean()
    assert loss.item() == pytest.approx(case["formula_f64"]["loss"], rel=1e-9)
    smoothed = PreferenceObjective("cdpo", beta=hparams["beta"], label_smoothing=0.2)(pair)
    lead = hparams["beta"] * (pair.chosen_logratios - pair.rejected_logratios)
    torch.testing.assert_close(smoothed, (-lead).exp().log1p() + 0.2 * lead)


@pytest.mark.parametrize("name", ["sigmoid_two_micro_batches", "sft_two_micro_batches"])
def test_dpo_in_two_micro_batches(dpo, name):
    """The peer's: each micro-batch's own mean, divided by the number of them."""
    case, pair, hparams = dpo(name)
    objective, size = objective_of(hparams), hparams["per_device_train_batch_size"]
    losses = [objective(select(pair, slice(start, start + size))).mean().item() / 2 for start in (0, size)]
    assert losses == pytest.approx(case["formula_f64"]["micro_losses"], rel=1e-9)
    assert sum(losses) == pytest.approx(case["formula_f64"]["loss"], rel=1e-9)
    assert losses == pytest.approx(case["expected"]["micro_losses"], rel=1e-4)


def test_our_sft_term_does_not_depend_on_the_cut(dpo):
    """A fault of the peer: the token mean of two micro-batches is not that of the batch (3.2438 and 3.3020).
    Ours is the mean over pairs of the NLL per token, one batch or two.
    """
    _, pair, hparams = dpo("sft_two_micro_batches")
    objective, size = PreferenceObjective("sft"), hparams["per_device_train_batch_size"]
    halves = [objective(select(pair, slice(start, start + size))) for start in (0, size)]
    expected = [-logp / length for logp, length in zip(pair.chosen_logps, pair.chosen_lengths, strict=True)]
    assert torch.equal(objective(pair), torch.cat(halves))
    torch.testing.assert_close(objective(pair), torch.stack(expected))


@pytest.mark.parametrize("name", LEGACY)
def test_dpo_legacy(golden, name):
    """Losses, rewards and gradients on given sums. Its α is 1 - ours."""
    case = golden("dpo_legacy")["by_id"][name]
    hparams = case["hparams"]
    given = {key: float64(value) for key, value in case["inputs"].items()}
    chosen, rejected = (given[f"policy_{side}_logps"].requires_grad_() for side in ("chosen", "rejected"))
    references = [given[f"reference_{side}_logps"] for side in ("chosen", "rejected")]
    used = [torch.zeros_like(r) for r in references] if hparams["reference_free"] else references
    ones = torch.ones(len(chosen))
    divergence = hparams["f_divergence_type"]
    loss_type = hparams["loss_type"]
    objective = PreferenceObjective(
        "cdpo" if loss_type == "sigmoid" else loss_type,
        divergence=divergence,
        alpha=1 - hparams["alpha_divergence_coef"] if divergence == "alpha_divergence" else None,
        beta=hparams["beta"],
        label_smoothing=hparams["label_smoothing"],
    )
    losses = objective(Pair(chosen, rejected, *used, ones, ones, -chosen))
    losses.mean().backward()
    torch.testing.assert_close(losses.detach(), float64(case["formula_f64"]["losses"]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(losses.detach(), float64(case["expected"]["losses"]), rtol=1e-4, atol=1e-5)
    assert losses.mean().item() == pytest.approx(case["formula_f64"]["loss"], rel=1e-8)
    for side, leaf, reference in zip(("chosen", "rejected"), (chosen, rejected), references, strict=True):
        gradient = float64(case["formula_f64"]["grad"][f"policy_{side}"])
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-8, atol=1e-10)
        rewards = hparams["beta"] * (leaf.detach() - reference)
        torch.testing.assert_close(
            rewards, float64(case["expected"][f"{side}_rewards"]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", REWARD)
def test_reward(golden, name):
    content = golden("reward")
    case = content["by_id"][name]
    batch, hparams = content["batches"][case["batch"]], case["hparams"]
    chosen, rejected = (float64(batch["scores_f64"][side]) for side in ("chosen", "rejected"))
    # The column is a float32 tensor in a batch, and was one for the reference numbers.
    column = torch.tensor([row["margin"] for row in batch["rows"]]).double()
    margin = column if hparams["use_margin_column"] else None
    losses = bradley_terry(chosen, rejected, margin=margin)
    torch.testing.assert_close(losses, float64(case["per_pair_f64"]), **FLOAT64)
    centre = hparams["center_rewards_coefficient"] or 0.0
    loss = (losses + centre * centering(chosen, rejected)).mean().item()
    assert loss == pytest.approx(case["formula_f64"]["loss"], rel=1e-9)
    assert loss == pytest.approx(case["expected"]["loss"], rel=1e-4)


@pytest.mark.parametrize("name", [name for name in SFT if "completion_only" in name])
def test_sft_on_given_logps(golden, name):
    content = golden("sft")
    case = content["by_id"][name]
    rows = [row["policy_completion"] for row in content["batches"][case["batch"]]["per_token_logps_f64"]]
    loss = {"nll": nll, "dft": dft}[case["hparams"]["loss_type"]]
    parts = [loss(float64(row)).sum().item() / case["num_targets"] for row in rows]
    assert sum(parts) == pytest.approx(case["formula_f64"]["loss"], rel=1e-9)
    if "micro_losses" in case["formula_f64"]:
        micro = [sum(parts[:2]), sum(parts[2:])]
        assert micro == pytest.approx(case["formula_f64"]["micro_losses"], rel=1e-9)


@pytest.fixture(scope="module")
def policy(golden_folder):
    from transformers import AutoModelForCausalLM

    path = golden_folder / "models" / "policy"
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")


@pytest.mark.parametrize("name", SFT)
def test_sft_with_the_model(golden, policy, name):
    """Loss and gradient norm, one unpadded row at a time: no layout can change them."""
    content = golden("sft")
    case = content["by_id"][name]
    hparams = case["hparams"]
    function = {"nll": nll, "dft": dft}[hparams["loss_type"]]
    policy.zero_grad()
    parts, targets = [], 0
    for row in content["batches"][case["batch"]]["rows"]:
        ids = torch.tensor(row["prompt_ids"] + row["completion_ids"])
        first = len(row["prompt_ids"]) if hparams["completion_only_loss"] else 1
        logits = policy(ids[None]).logits[0]
        losses = function(target_logps(logits[first - 1 : -1], ids[first:]))
        targets += len(losses)
        parts.append(losses.sum() / (hparams["num_items_in_batch"] or case["num_targets"]))
    loss = sum(parts)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
    assert targets == case["num_targets"]
    # The library's Llama keeps float32 inside its norms and rotary tables.
    assert loss.item() == pytest.approx(case["formula_f64"]["loss"], rel=1e-5)
    assert norm.item() == pytest.approx(case["formula_f64"]["grad_norm"], rel=1e-5)
    if "micro_losses" in case["formula_f64"]:
        micro = [sum(parts[:2]).item(), sum(parts[2:]).item()]
        assert micro == pytest.approx(case["formula_f64"]["micro_losses"], rel=1e-5)
