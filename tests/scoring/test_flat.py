"""Flat rows against padded rectangles and against one document at a time."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lit_align.batches import Forest
from lit_align.outputs import LossOutput, Scores
from lit_align.scoring.layout import flat_layout
from lit_align.scoring.policy import Policy

VOCABULARY = 31


def llama(**more):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **more,
    )
    return LlamaForCausalLM(config)


def policies(model):
    """The same model in both layouts."""
    flat = Policy(model, layout="auto")
    padded = Policy(copy.deepcopy(model), layout="padded")
    assert flat.flat_layout(Forest.from_lists([[1]], [[[2]]])) is not None
    return flat, padded


def squares(scores: Scores, batch: Forest) -> LossOutput:
    """A loss whose slope differs from token to token, and couples the completions of a prompt."""
    sums = batch.sum_per_completion(scores.logps * batch.weights)
    index = torch.tensor(batch.parents)
    per_prompt = sums.new_zeros(batch.num_prompts).index_add(0, index, sums)
    return LossOutput((per_prompt**2).sum() - scores.logps.sum(), torch.tensor(float(batch.num_prompts)), {})


ids = st.integers(0, VOCABULARY - 1)
trees = st.tuples(st.lists(ids, max_size=6), st.lists(st.lists(ids, max_size=7), min_size=1, max_size=4))
forests = st.lists(trees, min_size=1, max_size=4).filter(
    lambda rows: any(c for _, group in rows for c in group)
)


@pytest.fixture(scope="module")
def pair():
    return policies(llama().double())


@settings(max_examples=60)
@given(rows=forests)
def test_flat_equals_padded_and_alone(pair, rows):
    flat, padded = pair
    batch = Forest.from_lists([p for p, _ in rows], [c for _, c in rows])
    with torch.no_grad():
        ours, theirs = flat(batch).logps, padded(batch).logps
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-9, atol=1e-9)
    alone = []
    with torch.no_grad():
        for p, completions in rows:
            for completion in completions:
                if completion:
                    alone.append(flat(Forest.from_lists([p], [[completion]])).logps)
    torch.testing.assert_close(ours, torch.cat(alone).to(ours.dtype), rtol=1e-9, atol=1e-9)


@settings(max_examples=20)
@given(rows=forests)
def test_gradients_of_flat_and_padded_agree(pair, rows):
    flat, padded = pair
    batch = Forest.from_lists([p for p, _ in rows], [c for _, c in rows])
    found = []
    for policy in (flat, padded):
        policy.zero_grad()
        total = policy(batch, loss=squares).total
        if not total.requires_grad:  # nothing in the batch can be predicted
            return
        total.backward()
        found.append([p.grad.clone() for p in policy.model.parameters()])
    scale = max(1.0, max(float(g.abs().max()) for g in found[1]))
    for ours, theirs in zip(*found, strict=True):
        # The library's norms compute in float32, whatever the weights are in.
        assert float((ours - theirs).abs().max()) <= 1e-6 * scale


@pytest.mark.parametrize("branches", [2, 3, 5, 16])
@pytest.mark.parametrize("prompt", [0, 1, 9])
def test_branches_see_their_prompt_and_not_each_other(pair, branches, prompt):
    flat, padded = pair
    generator = torch.Generator().manual_seed(branches)
    draw = lambda n: torch.randint(0, VOCABULARY, (n,), generator=generator).tolist()  # noqa: E731
    batch = Forest.from_lists([draw(prompt)], [[draw(1 + (5 * k) % 7) for k in range(branches)]])
    layout = flat_layout(batch)
    assert layout.input_ids.shape[1] == prompt + sum(batch.completion_lengths), "the prompt stands there once"
    with torch.no_grad():
        torch.testing.assert_close(flat(batch).logps, padded(batch).logps.double(), rtol=1e-9, atol=1e-9)


def test_learned_positions():
    torch.manual_seed(0)
    flat, padded = policies(
        GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2)).eval()
    )
    batch = Forest.from_lists([[1, 2, 3], [4]], [[[5, 6], [7]], [[8, 9, 10]]])
    with torch.no_grad():
        torch.testing.assert_close(flat(batch).logps, padded(batch).logps, rtol=1e-5, atol=1e-5)


def test_a_checkpointed_block_sees_its_own_layout():
    """Two forwards of different shape, then their backwards in the other order, recomputing each block."""
    batches = [
        Forest.from_lists([[1, 2, 3], [4]], [[[5, 6], [7]], [[8, 9, 10]]]),
        Forest.from_lists([[3, 3]], [[[1], [2, 2, 2, 2], [9, 8]]]),
    ]

    def gradients(checkpointing: bool):
        policy = Policy(llama().double().train())
        if checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        totals = [policy(batch, loss=squares).total for batch in batches]
        for total in totals[::-1]:
            total.backward()
        return [p.grad for p in policy.parameters()]

    for recomputed, kept in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(recomputed, kept, rtol=1e-10, atol=1e-10)


def test_generation_is_not_disturbed():
    """The same tokens as before the flat attention was installed."""
    plain, scored = llama().eval(), llama().eval()
    Policy(scored)(Forest.from_lists([[1, 2]], [[[3]]]))
    prompt = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(plain.generate(prompt, **options), scored.generate(prompt, **options))


def test_lora_and_its_base_in_the_same_layout():
    from peft import LoraConfig, get_peft_model

    model = llama()
    batch = Forest.from_lists([[1, 2, 3]], [[[5, 6], [7, 8]]])
    with torch.no_grad():
        base = Policy(copy.deepcopy(model).eval())(batch).logps
    lora = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    flat, padded = policies(lora.eval())
    with torch.no_grad():
        torch.testing.assert_close(flat(batch).logps, padded(batch).logps, rtol=1e-4, atol=1e-5)
        with lora.disable_adapter():
            torch.testing.assert_close(flat(batch).logps, base, rtol=1e-5, atol=1e-6)


def test_adapted_heads_take_plain_autograd():
    """LoRA on the head: not one matrix, so the head's own forward is used, with its gradient."""
    from peft import LoraConfig, get_peft_model

    lora = get_peft_model(llama(), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    flat, padded = policies(lora)
    batch = Forest.from_lists([[1, 2, 3]], [[[5, 6], [7, 8]]])
    found = []
    for policy in (flat, padded):
        policy(batch, loss=squares).total.backward()
        found.append([p.grad for p in policy.parameters() if p.requires_grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_bf16_weights():
    flat, padded = policies(llama().bfloat16())
    batch = Forest.from_lists([[1, 2, 3], [4]], [[[5, 6], [7]], [[8, 9, 10]]])
    with torch.no_grad():
        torch.testing.assert_close(flat(batch).logps, padded(batch).logps, rtol=0.02, atol=0.02)
    flat(batch, loss=squares).total.backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in flat.parameters())


def test_documents_longer_than_the_window_are_padded():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=16,
    )
    policy = Policy(MistralForCausalLM(config).eval())
    short, long = (Forest.from_lists([[1] * n], [[[2, 3]]]) for n in (14, 15))
    assert policy.flat_layout(short) is not None
    assert policy.flat_layout(long) is None
    with torch.no_grad():
        assert torch.isfinite(policy(long).logps).all()
