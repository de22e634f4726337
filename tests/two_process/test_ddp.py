"""Two processes over gloo give the gradients and the metrics of one."""

import pytest
import torch


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm", ["sft", "sft_lora", "sft_parts", "dpo_parts", "reward", "reward_lora", "dpo", "dpo_lora"]
)
def test_two_processes_equal_one(forked, algorithm, tmp_path):
    forked("step", 1, tmp_path, algorithm, 1, 1, tmp_path / "one.pt")
    forked("step", 2, tmp_path, algorithm, 2, 2, tmp_path / "two.pt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    largest = max(1.0, max(float(g.abs().max()) for g in one["grads"].values()))
    assert one["grads"].keys() == two["grads"].keys()
    for name, grad in one["grads"].items():
        other = two["grads"][name]
        assert float((grad - other).abs().max()) <= 1e-6 * largest, name
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
