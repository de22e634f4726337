"""Algorithms that sample give on two processes, replicated or sharded, what they give on one."""

import pytest
import torch

DDP = [
    "ppo",
    "ppo_critic",
    "ppo_lora",
    "ppo_stopped",
    "a2c",
    "grpo",
    "grpo_top_entropy",
    "rloo",
    "reinforce_pp",
]
FSDP = ["ppo", "ppo_critic", "ppo_full_kl", "ppo_full_kl_lora"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "strategy"), [(name, "ddp") for name in DDP] + [(name, "fsdp") for name in FSDP]
)
def test_two_processes_equal_one(forked, algorithm, strategy, tmp_path):
    assert_same(forked, algorithm, strategy, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "processes"),
    [(name, 2) for name in ("ppo", "ppo_critic", "ppo_lora", "grpo")] + [("ppo", 4), ("rloo", 4)],
)
def test_split_products_equal_one_process(forked, algorithm, processes, tmp_path):
    """Two processes share each product, and write the same completions; of four, two and two do."""
    assert_same(forked, algorithm, "tensor", processes, tmp_path)


@pytest.mark.slow
def test_processes_that_read_the_same_rows_hear_one_judge(forked, tmp_path):
    """A mean over both processes of 0 in the first and 1 in the second: 0, where only the first counts."""
    found = []
    for strategy in ("ddp", "tensor"):
        forked("on_policy", 2, tmp_path, "ranked", strategy, 2, tmp_path / "two.pt")
        steps = torch.load(tmp_path / "two.pt", weights_only=True)["steps"]
        found.append([step["train/rewards/ranked/mean"] for step in steps])
    assert found == [[0.5] * 5, [0.0] * 5]


def assert_same(forked, algorithm, strategy, processes, tmp_path):
    forked("on_policy", 1, tmp_path, algorithm, strategy, 1, tmp_path / "one.pt")
    forked("on_policy", processes, tmp_path, algorithm, strategy, processes, tmp_path / "two.pt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-5, atol=2e-6, msg=name)
    for mine, other in zip(one["steps"], two["steps"], strict=True):
        # A batch of another size rounds the sampler's log-probs in another way; they are no metric of ours.
        skip = {name for name in mine if "sampling" in name or "extreme" in name}
        for name in mine.keys() - skip:
            assert other[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_unequal_needs_do_not_hang(forked, strategy, tmp_path):
    """With dynamic sampling one process may lack groups where the other has enough."""
    forked("on_policy", 2, tmp_path, "dynamic", strategy, 2, tmp_path / "two.pt")
    steps = torch.load(tmp_path / "two.pt", weights_only=True)["steps"]
    assert steps[-1]["train/dynamic_sampling/filled"] > 0
