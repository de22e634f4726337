"""DeepSpeed's ZeRO 2 and 3 over two gloo processes give the losses and the weights of one process."""

import pytest
import torch

from tests.two_process.comparison import assert_equal, assert_same_exports

pytest.importorskip("deepspeed", reason="ZeRO is DeepSpeed's: pip install 'lit-align[deepspeed]'")

STAGES = ("zero2", "zero3")


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        "sft",
        "sft_parts",
        "sft_window",
        "sft_checkpointed",
        "sft_lora",
        "reward",
        "reward_lora",
        "dpo_copy",
        "dpo_ema",
        "dpo_lora_off",
        "dpo_lora_copy",
        "dpo_lora_ema",
        "loaded_shared",
        "actor_critic",
        "critic",
        "value_adapter",
        "t5",
    ],
)
def test_two_processes_equal_one(algorithm, run, tmp_path):
    one = run(algorithm, "auto", 1, tmp_path / "one.pt")
    assert one["losses"][0] != pytest.approx(one["losses"][-1], rel=1e-5)
    assert len(one["norms"]) == len(one["losses"])
    for strategy in STAGES:
        two = run(algorithm, strategy, 2, tmp_path / f"{strategy}.pt")
        assert (two["shards"] > 0) == (strategy == "zero3")
        assert two["norms"] == pytest.approx(one["norms"], rel=1e-5)
        assert_equal(one, two)
        assert_same_exports(tmp_path / "one", tmp_path / strategy)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sft_adam", "reward_lora", "dpo_copy"])
def test_a_run_goes_on_under_any_strategy(algorithm, run, tmp_path):
    """Three steps under one and three under another are six of one process, with momentum and with AdamW."""
    run(algorithm, "auto", 1, tmp_path / "alone.pt")
    whole = run(algorithm, "auto", 1, tmp_path / "whole.pt", tmp_path / "alone.ckpt")
    assert len(whole["losses"]) == 3
    for strategy in STAGES:
        run(algorithm, strategy, 2, tmp_path / f"{strategy}.pt")
    for first, second, processes in (
        ("zero2", "zero3", 2),
        ("zero3", "zero2", 2),
        ("zero3", "auto", 1),
        ("alone", "zero3", 2),
    ):
        rest = run(algorithm, second, processes, tmp_path / "rest.pt", tmp_path / f"{first}.ckpt")
        assert_equal(whole, rest)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo_critic", "ppo_stopped", "grpo"])
def test_algorithms_that_sample_equal_one_process(algorithm, forked, tmp_path):
    forked("on_policy", 1, tmp_path, algorithm, "auto", 1, tmp_path / "one.pt")
    forked("on_policy", 2, tmp_path, algorithm, "zero2", 2, tmp_path / "two.pt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STAGES)
def test_a_gradient_that_is_no_number_stops_the_run(strategy, run, tmp_path):
    """DeepSpeed would leave the step out and go on."""
    with pytest.raises(AssertionError, match="gradient not finite at optimiser step 1"):
        run("broken", strategy, 2, tmp_path / "two.pt")
