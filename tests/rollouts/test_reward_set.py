import asyncio
import time

import pytest
import torch

from lit_align.batches import Forest
from lit_align.functional.group_advantages import weighted_rewards
from lit_align.models.tokenizers import load_tokenizer
from lit_align.rewards.inputs import RewardError
from lit_align.rollouts.reward_set import RewardConfig, RewardSet
from lit_align.runtime import trust


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("lit-align/tiny")


@pytest.fixture(scope="module")
def forest(tokenizer):
    def ids(text):
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    records = [{"prompt": "Add 3 and 3.", "answer": 6}, {"prompt": "Add 4 and 4.", "answer": 8}]
    made = Forest.from_lists(
        [[5, 6], [7]], [[ids("It is 6."), ids("It is 7.")], [ids("8"), ids("9")]], records=records
    )
    made.completion_columns["finished"] = torch.tensor([True] * 4)
    return made


def value(metric):
    return float(metric.value / metric.weight)


def test_one_function_by_name(forest, tokenizer):
    result = RewardSet.build("numeric_answer")(forest, tokenizer, 1)
    assert result.table.tolist() == [[1.0], [0.0], [1.0], [0.0]]
    assert (result.names, result.weights.tolist(), result.token_rewards) == (("numeric_answer",), [1.0], None)
    assert torch.equal(result.scores, result.table)


def test_several_with_weights(forest, tokenizer):
    rewards = RewardSet.build({"numeric_answer": 1.0, "polite": 0.5})
    result = rewards(forest, tokenizer)
    assert result.table.shape == (4, 2)
    assert weighted_rewards(result.table, result.weights).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_metrics_are_means_over_what_was_scored(forest, tokenizer):
    def some(completions):
        return [1.0, 3.0, None, float("nan")]

    metrics = RewardSet.build([RewardConfig(function=some, allow_none=True)])(forest, tokenizer).metrics
    assert value(metrics["rewards/some/mean"]) == 2.0
    assert value(metrics["rewards/some/std"]) == pytest.approx(2**0.5)
    assert value(metrics["rewards/some/failures"]) == 0.25


def test_nothing_scored_weighs_nothing(forest, tokenizer):
    result = RewardSet.build(lambda completions: [None] * 4)(forest, tokenizer)
    assert result.table.isnan().all()
    for name in ("mean", "std"):
        metric = next(m for key, m in result.metrics.items() if key.endswith(name))
        assert (float(metric.value), float(metric.weight)) == (0.0, 0.0)


def test_numbers_that_a_function_reports(forest, tokenizer):
    def reward(completions, log_metric):
        log_metric("accuracy", 0.25)
        return [0.0] * len(completions)

    assert value(RewardSet.build(reward)(forest, tokenizer).metrics["rewards/reward/accuracy"]) == 0.25


def test_rewards_of_tokens_are_told_apart_from_scores(forest, tokenizer):
    def tokens(completion_ids):
        return [[0.5] * len(ids) if i != 3 else None for i, ids in enumerate(completion_ids)]

    configs = [RewardConfig(function=tokens, weight=2.0), RewardConfig(function="numeric_answer")]
    result = RewardSet.build(configs)(forest, tokenizer)
    lengths = torch.tensor(forest.completion_lengths)
    assert result.table[:3, 0].tolist() == (0.5 * lengths[:3]).tolist()
    assert result.table[3, 0].isnan()
    # What is spread over the tokens is not in the scores again.
    assert result.scores[:3, 0].tolist() == [0.0] * 3
    assert result.scores[:, 1].tolist() == result.table[:, 1].tolist()
    sums = forest.sum_per_completion(result.token_rewards)
    assert sums.tolist() == [*(1.0 * lengths[:3]).tolist(), 0.0]


def test_async_functions_wait_while_others_work(forest, tokenizer):
    async def first(completions):
        await asyncio.sleep(0.3)
        return [1.0] * 4

    async def second(completions):
        await asyncio.sleep(0.3)
        return [2.0] * 4

    def third(completions):
        time.sleep(0.3)
        return [3.0] * 4

    start = time.monotonic()
    result = RewardSet.build([first, second, third])(forest, tokenizer)
    assert time.monotonic() - start < 0.8
    assert result.table[0].tolist() == [1.0, 2.0, 3.0]


def test_a_module_is_a_frozen_part_of_the_set(forest, tokenizer):
    class Judge(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, completions):
            return self.scale * torch.arange(len(completions))

    rewards = RewardSet.build(Judge())
    parent = torch.nn.ModuleList([rewards]).train().to(torch.float64)
    assert not any(module.training for module in rewards.modules())
    assert [p.dtype for p in parent.parameters()] == [torch.float64]
    assert not any(p.requires_grad for p in parent.parameters())
    assert rewards(forest, tokenizer).table[:, 0].tolist() == [0.0, 2.0, 4.0, 6.0]


def test_state_goes_along(forest, tokenizer):
    spec = RewardConfig(function=lambda completions: [None, 1.0, 1.0, 1.0], name="f")
    first, second = RewardSet.build(spec), RewardSet.build(spec)
    first(forest, tokenizer)
    second.load_reward_state(first.reward_state())
    assert second.reward_state() == {"f": {"failures": [[4, 1]]}}
    RewardSet.build("polite").load_reward_state(first.reward_state())


def test_a_set_is_a_set():
    rewards = RewardSet.build("polite")
    assert RewardSet.build(rewards) is rewards


def test_what_a_configuration_names_is_checked_before_anything_runs():
    with trust.restricted(), pytest.raises(trust.UntrustedImport):
        RewardSet.build("os.system")
    with pytest.raises(RewardError, match="does not tell its arguments"):
        RewardSet.build(iter)


def test_a_model_has_to_be_attached(forest, tokenizer):
    with pytest.raises(RuntimeError, match=r"'name' is a model: call attach"):
        RewardSet.build("org/name")(forest, tokenizer)


def test_isolated_functions_judge_in_their_process(forest, tokenizer):
    rewards = RewardSet.build(RewardConfig(function="numeric_answer", isolate=True))
    assert rewards(forest, tokenizer).table[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]
    rewards.functions["numeric_answer"].worker.stop()
