"""FSDP2 over two gloo processes gives the losses and the weights of one process."""

import shutil

import pytest

from lit_align.runtime.manifest import fault, manifest_path
from tests.two_process.comparison import assert_equal, assert_same_exports


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        "sft",
        "sft_parts",
        "sft_lora",
        "reward",
        "reward_lora",
        "dpo_copy",
        "dpo_lora_off",
        "dpo_lora_copy",
        "actor_critic",
        "actor_critic_lora",
        "critic",
        "t5",
        "value_adapter",
    ],
)
def test_sharded_equals_one_process(algorithm, run, tmp_path):
    one = run(algorithm, "auto", 1, tmp_path / "one.pt")
    two = run(algorithm, "fsdp2", 2, tmp_path / "two.pt")
    assert one["shards"] == 0
    assert two["shards"] > 0
    # It learns, so that equal is not equal to nothing.
    assert one["losses"][0] != pytest.approx(one["losses"][-1], rel=1e-5)
    assert_equal(one, two)
    assert_same_exports(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        "loaded",
        "loaded_reward_lora",
        "loaded_pissa",
        "loaded_default",
        "default",
        "loaded_reference",
        "loaded_shared",
        "loaded_critic",
        "loaded_value_adapter",
    ],
)
def test_only_process_zero_builds_weights(algorithm, run, tmp_path):
    one = run(algorithm, "auto", 1, tmp_path / "one.pt")
    two = run(algorithm, "fsdp2", 2, tmp_path / "two.pt")
    models = len(one["built"][0])
    assert one["built"] == [["cpu"] * models]
    assert two["built"] == [["cpu"] * models, ["meta"] * models]
    # What no checkpoint has is the same on all processes too.
    assert two["frequencies"] == one["frequencies"] > 0
    assert_equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["critic", "value_adapter"])
def test_replicated_critics_equal_one_process(algorithm, run, tmp_path):
    """Their gradients are made inside of the forward pass, and reduced when the total's are asked for."""
    one = run(algorithm, "auto", 1, tmp_path / "one.pt")
    assert_equal(one, run(algorithm, "ddp", 2, tmp_path / "two.pt"))


@pytest.mark.slow
def test_lightning_s_own_strategy_gives_the_same(run, tmp_path):
    one = run("sft", "auto", 1, tmp_path / "one.pt")
    assert_equal(one, run("sft", "lightning", 2, tmp_path / "two.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sft", "reward_lora", "dpo_copy"])
def test_a_sharded_run_goes_on_with_any_strategy(algorithm, run, tmp_path):
    run(algorithm, "fsdp2", 2, tmp_path / "first.pt")
    checkpoint = tmp_path / "first.ckpt"
    assert (checkpoint / "index.json").is_file()
    assert fault(checkpoint) is None
    sharded = run(algorithm, "fsdp2", 2, tmp_path / "sharded.pt", checkpoint)
    ddp = run(algorithm, "ddp", 2, tmp_path / "ddp.pt", checkpoint)
    alone = run(algorithm, "auto", 1, tmp_path / "alone.pt", checkpoint)
    assert len(alone["losses"]) == 3
    assert_equal(alone, sharded)
    assert_equal(alone, ddp)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sft_lora", "dpo_lora_off"])
def test_two_processes_to_one_to_two(algorithm, run, tmp_path):
    """FSDP2 in two processes, then one process, then FSDP2 again: as one process throughout."""
    run(algorithm, "fsdp2", 2, tmp_path / "a.pt")
    run(algorithm, "auto", 1, tmp_path / "b.pt", tmp_path / "a.ckpt")
    two = run(algorithm, "fsdp2", 2, tmp_path / "c.pt", tmp_path / "b.ckpt")
    run(algorithm, "auto", 1, tmp_path / "d.pt")
    run(algorithm, "auto", 1, tmp_path / "e.pt", tmp_path / "d.ckpt")
    one = run(algorithm, "auto", 1, tmp_path / "f.pt", tmp_path / "e.ckpt")
    assert len(two["losses"]) == 3
    assert_equal(one, two)


@pytest.mark.slow
def test_a_damaged_sharded_checkpoint_is_passed_over(run, tmp_path):
    whole = run("sft", "fsdp2", 2, tmp_path / "first.pt")
    good, bad = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    shutil.copytree(good, bad)
    shutil.copy(manifest_path(good), manifest_path(bad))
    manifest_path(bad).write_text(manifest_path(bad).read_text().replace("first.ckpt", "second.ckpt"))
    part = bad / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    rest = run("sft", "fsdp2", 2, tmp_path / "rest.pt", bad)
    assert rest["losses"] != whole["losses"]
    assert_equal(run("sft", "auto", 1, tmp_path / "alone.pt", good), rest)


# With four processes, two of which share each product, FSDP2 spreads what is left.
BOTH = ["sft", "sft_lora", "reward", "reward_lora", "dpo_copy", "dpo_lora_off", "dpo_lora_copy", "dpo_ema"]
SPLIT = ["actor_critic", "critic", "value_adapter", "sft_parts", "sft_tied", "qwen2", "qwen3", "dpo_shared"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "processes"),
    [(f"split_{name}", n) for name in BOTH for n in (2, 4)]
    + [(f"split_{name}", 2) for name in (*SPLIT, "checkpointed", "padded")],
)
def test_split_products_equal_one_process(algorithm, processes, run, tmp_path):
    """Two processes that share the products of each layer; four, of which two and two do."""
    one = run(algorithm, "auto", 1, tmp_path / "one.pt")
    split = run(algorithm, "tensor", processes, tmp_path / "two.pt")
    kinds = ("_proj.weight", "_proj.base_layer.weight", "dense.weight", "query_key_value.weight", "h.weight")
    products = [name for name in one["held"] if name.endswith(kinds)]
    assert len(products) >= 8
    # Two hold a half each; of four the first may have a row more than the other.
    row = 34 if processes > 2 else 0
    for name in products:
        assert split["held"][name] == pytest.approx(one["held"][name] / processes, abs=row), name
    assert split["tokens"] == one["tokens"] > 0
    assert_equal(one, split)
    assert_same_exports(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["split_sft", "split_dpo_lora_copy"])
def test_a_split_run_goes_on_with_any_strategy(algorithm, run, tmp_path):
    """Four processes, two by two; then any number; and two go on from one process's file."""
    run(algorithm, "tensor", 4, tmp_path / "first.pt")
    checkpoint = tmp_path / "first.ckpt"
    assert fault(checkpoint) is None
    alone = run(algorithm, "auto", 1, tmp_path / "alone.pt", checkpoint)
    assert len(alone["losses"]) == 3
    for strategy, processes in (("tensor", 4), ("tensor", 2), ("fsdp2", 2), ("ddp", 2)):
        assert_equal(alone, run(algorithm, strategy, processes, tmp_path / "next.pt", checkpoint))
    file = tmp_path / "alone.ckpt"
    assert_equal(
        run(algorithm, "auto", 1, tmp_path / "one.pt", file),
        run(algorithm, "tensor", 2, tmp_path / "two.pt", file),
    )
