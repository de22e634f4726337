"""A batch in parts gives the gradient of the whole, and the head's gradient is made once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
)

from lit_align.algorithms import micro_batches as parts_of_steps
from lit_align.algorithms.dpo import DPO
from lit_align.algorithms.grpo import GRPO
from lit_align.algorithms.micro_batches import WithGradientOf, micro_batches
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.ppo import PPO
from lit_align.algorithms.reward import RewardModel
from lit_align.algorithms.sft import SFT
from lit_align.batches import Forest
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring import head_gradient
from tests.algorithms.on_policy_runs import fit


def pairs(count: int = 8, seed: int = 0) -> Forest:
    generator = torch.Generator().manual_seed(seed)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(1, longest, (1,), generator=generator))
        return torch.randint(3, 64, (length,), generator=generator).tolist()

    return Forest.from_lists([ids(12) for _ in range(count)], [[ids(20), ids(20)] for _ in range(count)])


def make(name: str, tokens: int | None, tied: bool = True, **more):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=tied,
        num_labels=1,
        pad_token_id=5,
    )
    optim = OptimConfig(micro_batch_tokens=tokens, schedule="constant")
    if name == "reward":
        return RewardModel(LlamaForSequenceClassification(config), optim=optim, lr=0.1, **more)
    algorithm = {"sft": SFT, "dpo": DPO}[name]
    return algorithm(LlamaForCausalLM(config), optim=optim, lr=0.1, **more)


@settings(max_examples=50)
@given(count=st.integers(1, 9), tokens=st.integers(1, 200), seed=st.integers(0, 20))
def test_parts_are_whole_trees_in_order(count, tokens, seed):
    batch = pairs(count, seed)
    parts = micro_batches(batch, tokens)
    assert [row for part in parts for row in part.rows] == list(batch.rows)
    assert torch.equal(torch.cat([p.completion_ids for p in parts]), batch.completion_ids)
    for part in parts:
        assert len(part.prompt_ids) + len(part.completion_ids) <= tokens or part.num_prompts == 1
    assert micro_batches(batch, None) == [batch]


@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_parts_change_no_gradient_and_no_metric(one_step, name, window, tied):
    batches = [pairs(), pairs(5, seed=1)][:window]
    whole = one_step(make(name, None, tied), batches)
    parts = one_step(make(name, 40, tied), batches)
    assert len(micro_batches(batches[0], 40)) > 3
    largest = max(float(grad.abs().max()) for grad in whole.grads.values())
    for key, grad in whole.grads.items():
        torch.testing.assert_close(parts.grads[key], grad, rtol=0, atol=1e-6 * max(1, largest))
    for key, value in whole.metrics.items():
        assert parts.metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("long", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_a_part_that_has_to_be_padded_loses_no_gradient_of_the_head(one_step, long, tied):
    """Documents longer than a sliding window leave the flat layout, wherever in the batch they stand."""

    def build(tokens: int | None):
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            sliding_window=16,
        )
        optim = OptimConfig(micro_batch_tokens=tokens, schedule="constant")
        return SFT(MistralForCausalLM(config), optim=optim, lr=0.1)

    lengths = [25 if i == long else 8 for i in range(3)]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(3, 64, (length,), generator=generator).tolist() for length in lengths]
    batch = Forest.from_lists([ids[:4] for ids in drawn], [[ids[4:]] for ids in drawn])
    whole, parts = (one_step(build(tokens), [batch]) for tokens in (None, 10))
    for key, grad in whole.grads.items():
        torch.testing.assert_close(parts.grads[key], grad, rtol=1e-4, atol=1e-6, msg=key)


def test_a_loss_of_the_whole_batch_is_not_cut(one_step):
    parts = one_step(make("dpo", 40, loss="aot"), [pairs()])
    whole = one_step(make("dpo", None, loss="aot"), [pairs()])
    for key, grad in whole.grads.items():
        assert torch.equal(parts.grads[key], grad)


def test_averages_of_batches_cannot_be_cut():
    with pytest.raises(ValueError, match=r"micro_batch_tokens cuts a batch.*loss_average: micro_batch"):
        make("sft", 40, loss_average="micro_batch")
    with pytest.raises(ValueError, match="micro_batch_tokens is 0"):
        OptimConfig(micro_batch_tokens=0)


def test_a_router_loss_cannot_be_cut():
    """Its value for two halves of a batch is not that of the batch, so parts would be another loss."""
    with pytest.raises(ValueError, match=r"router_loss_weight .*micro_batch_tokens do not add up to"):
        make("sft", 40, router_loss_weight=0.01)
    make("sft", None, router_loss_weight=0.01)
    make("sft", 40)


def test_the_head_gradient_reaches_autograd_once(one_step, monkeypatch):
    """One buffer of the head's size, whatever the number of parts, handed over by the last of them."""
    handed, buffers = [], set()
    original = head_gradient.HeadGradient.hand_over

    def watch(self, found, scale, dtype):
        buffers.add(found.data_ptr())
        result = original(self, found, scale, dtype)
        handed.append(result is not None)
        return result

    monkeypatch.setattr(head_gradient.HeadGradient, "hand_over", watch)
    one_step(make("sft", 40), [pairs()])
    assert len(handed) > 3
    assert handed == [False] * (len(handed) - 1) + [True]
    assert len(buffers) == 1


@pytest.mark.parametrize(
    ("algorithm", "kept", "steered"),
    [
        (PPO, "_moved", {"target_kl": 1e9}),
        (PPO, "_ratios", {"ratio_threshold": 1e9}),
        (GRPO, "_entropies", {"entropy_target": 1.0, "completions": 2}),
    ],
)
def test_spare_passes_steer_nothing(algorithm, kept, steered, tmp_path, monkeypatch):
    """A process that repeats a part, because another has more of them, measures what it did without."""
    monkeypatch.setattr(parts_of_steps, "steps_together", lambda *given: True)

    def measured(spare: int) -> list[list[float]]:
        module = algorithm(
            "lit-align/tiny",
            rewards=lambda completions, **rest: [float(len(text)) for text in completions],
            sampling=Sampling(8),
            lr=1e-3,
            optim=OptimConfig(micro_batch_tokens=40),
            **steered,
        )
        before_update, found = module.before_update, []

        def look(optimizer):
            metrics = getattr(module, kept)
            found.append([float(sum(m.value for m in metrics)), float(sum(m.weight for m in metrics))])
            before_update(optimizer)

        monkeypatch.setattr(parts_of_steps, "_spare_parts", lambda *given: spare)
        monkeypatch.setattr(module, "before_update", look)
        fit(module, tmp_path / str(spare), steps=2)
        return found

    alone, padded = measured(0), measured(2)
    assert [weight > 0 for _, weight in alone] == [True, True]
    assert padded == [pytest.approx(sums, rel=1e-4, abs=1e-7) for sums in alone]


def test_checkpointed_blocks_in_parts(one_step):
    once = one_step(make("sft", None), [pairs()])
    module = make("sft", 40)
    module.configure_model()
    module.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    again = one_step(module, [pairs()])
    for key, grad in once.grads.items():
        torch.testing.assert_close(again.grads[key], grad, rtol=1e-4, atol=1e-6)


def test_bf16_in_parts(one_step):
    """Rounding differs from part to part by what bf16 resolves, and no more."""
    whole = one_step(make("sft", None), [pairs()], precision="bf16-mixed")
    parts = one_step(make("sft", 40), [pairs()], precision="bf16-mixed")
    for key, grad in whole.grads.items():
        assert parts.grads[key].dtype == torch.float32
        assert (parts.grads[key] - grad).norm() <= 0.02 * grad.norm(), key


def test_value_of_one_and_gradient_of_another():
    total = torch.tensor(6.0, requires_grad=True)
    shown = WithGradientOf.apply(total, total / 3)
    assert shown.item() == 2.0
    shown.backward()
    assert total.grad.item() == 1.0
