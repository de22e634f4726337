"""The reward model through Lightning, against golden numbers."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_align.algorithms.reward import RewardModel
from lit_align.batches import Forest

CASES = ["plain", "plain_b", "margin", "center", "margin_center"]


def forest(rows, margin):
    columns = {"margin": torch.tensor([r["margin"] for r in rows])} if margin else {}
    pairs = [[r["chosen_ids"], r["rejected_ids"]] for r in rows]
    return Forest.from_lists([r["prompt_ids"] for r in rows], pairs, prompt_columns=columns)


def classifier(golden_models):
    return AutoModelForSequenceClassification.from_pretrained(golden_models / "reward", num_labels=1)


def test_every_golden_case_is_here(golden):
    assert sorted(golden("reward")["by_id"]) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_goldens(golden, golden_models, one_step, name):
    data = golden("reward")
    case = data["by_id"][name]
    hparams, expected = case["hparams"], case["formula_f64"]
    batch = forest(data["batches"][case["batch"]]["rows"], hparams["use_margin_column"])
    coefficient = hparams["center_rewards_coefficient"] or 0.0
    run = one_step(RewardModel(classifier(golden_models), center_rewards_coefficient=coefficient), [batch])
    assert run.metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert run.grad_norm == pytest.approx(expected["grad_norm"], rel=1e-4)
    for key, values in expected["grads"].items():
        torch.testing.assert_close(run.grads[key].flatten()[:6], torch.tensor(values), rtol=1e-3, atol=1e-5)
    for key, value in expected["metrics"].items():
        assert run.metrics[key] == pytest.approx(value, rel=1e-4), key


def test_scores_match_the_goldens(golden, golden_models):
    data = golden("reward")["batches"]["r_a"]
    module = RewardModel(classifier(golden_models))
    with torch.no_grad():
        rewards = module.score(forest(data["rows"], margin=False))
    torch.testing.assert_close(
        rewards[0::2], torch.tensor(data["scores_f64"]["chosen"]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        rewards[1::2], torch.tensor(data["scores_f64"]["rejected"]), rtol=1e-4, atol=1e-5
    )


def test_every_position_matches_the_goldens(golden, golden_models):
    """Scores at every position: a completion cut after j tokens is scored at its j-th."""
    data = golden("logprobs")
    for case, name in (("reward_scores", "reward"), ("critic_values", "critic")):
        expected = data["by_id"][case]["formula_f64"]["scores"]
        rows = data["batches"]["seq_a"]["rows"]
        model = AutoModelForSequenceClassification.from_pretrained(golden_models / name, num_labels=1)
        full = [r["prompt_ids"] + r["completion_ids"] for r in rows]
        prefixes = [[ids[: j + 1] for j in range(len(ids))] for ids in full]
        batch = Forest.from_lists([[] for _ in rows], prefixes)
        module = RewardModel(model)
        with torch.no_grad():
            rewards = module.score(batch)
        wanted = torch.tensor([v for row in expected for v in row])
        torch.testing.assert_close(rewards, wanted.float(), rtol=1e-4, atol=1e-5)


def test_a_text_may_end_in_the_pad_id(golden_models):
    """The library's own classifier would read the score in front of the trailing pad ids."""
    model = classifier(golden_models)
    ids = [5, 6, 7, model.config.pad_token_id]
    batch = Forest.from_lists([[5, 6]], [[[7, model.config.pad_token_id], [9]]])
    module = RewardModel(model)
    with torch.no_grad():
        got = module.score(batch)[0]
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        torch.testing.assert_close(got, model.score(hidden)[0, -1, 0])


def test_left_padded_input_gives_the_same_reward(golden_models):
    """The library's classifier on left-padded and right-padded rows says what ours says of the forest."""
    model = classifier(golden_models)
    batch = Forest.from_lists([[5, 6, 7], [8]], [[[9, 10], [11]], [[12, 13, 14], [15]]])
    module = RewardModel(model)
    with torch.no_grad():
        ours = module.score(batch)
        for side in ("left", "right"):
            rows = batch.padded(model.config.pad_token_id, side=side)
            theirs = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, 0]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_margin_shifts_the_loss_and_no_metric(golden_models, one_step):
    plain = Forest.from_lists([[5, 6]], [[[7, 2], [9, 2]]])
    shifted = replace(plain, prompt_columns={"margin": torch.tensor([3.0])})
    a = one_step(RewardModel(classifier(golden_models)), [plain]).metrics
    b = one_step(RewardModel(classifier(golden_models)), [shifted]).metrics
    assert b["loss"] > a["loss"]
    assert {k: v for k, v in a.items() if k != "loss"} == {k: v for k, v in b.items() if k != "loss"}
