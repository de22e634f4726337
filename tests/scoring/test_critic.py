"""Critics: values by layout, by path through the head, and against golden numbers."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2Model

from lit_align.batches import Forest
from lit_align.models.build import build_causal_lm
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.models.critic import build_critic
from lit_align.models.value_head import ValueHeadConfig, build_value_head, load_value_head
from lit_align.outputs import LossOutput, Scores
from lit_align.scoring import head_work as fused
from lit_align.scoring.blocks import blocks
from lit_align.scoring.critic import ActorCritic, Critic
from lit_align.scoring.head import Head, head_loss

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Adapters that are not zero, and do not make a chaos of two tiny layers.
GENTLE = LoraConfig(r=4, alpha=1, extra={"init_lora_weights": False})
RANDOM = ValueHeadConfig("normal", std=0.3)


def forest() -> Forest:
    """Groups of one to three, an empty prompt, a completion cut away, tokens that weigh nothing."""
    return Forest.from_lists(
        [[5, 6, 7], [8], []],
        [[[9, 10, 2], [11, 2], [12]], [[13, 14, 15, 2], []], [[16, 17, 2]]],
        weights=[[[1, 1, 1], [1, 1], [1]], [[1, 0, 1, 1], []], [[1, 1, 1]]],
    )


def actor_critic(lora=None, layout="auto", dtype="float64"):
    model = build_causal_lm(ModelConfig(architecture=ARCHITECTURE, lora=lora, dtype=dtype))
    return ActorCritic(model, build_value_head(model, RANDOM), layout=layout).train()


def both(scores: Scores, batch: Forest) -> LossOutput:
    """Couples log-probs and values of a prompt's completions, so that blocks must be whole."""
    logps, values = (batch.sum_per_completion(x * batch.weights) for x in (scores.logps, scores.values))
    index = torch.tensor(batch.parents)
    each = logps.new_zeros(batch.num_prompts).index_add(0, index, logps * values + values**2)
    surprise = scores.logps.sum() if scores.entropy is None else (scores.entropy * scores.values).sum()
    return LossOutput((each**2).sum() - surprise, torch.tensor(1.0), {})


def states(model, prompt, completion):
    """The definition: one document alone, the states before each of its completion's tokens."""
    ids = torch.tensor([prompt + completion])
    hidden = model.base_model(ids).last_hidden_state[0]
    return hidden[max(len(prompt) - 1, 0) : len(ids[0]) - 1]


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_values_are_a_function_of_the_state_before_the_token(layout):
    policy = actor_critic(layout=layout)
    batch = forest()
    values = policy(batch).values
    critic = Critic(policy.model.base_model, policy.value_head, layout=layout)
    torch.testing.assert_close(critic(batch), values, rtol=1e-9, atol=1e-9)
    expected = []
    for prompt, completion, weights in batch.sequences():
        if not completion:
            continue
        found = policy.value_head(states(policy.model, prompt, completion)).tolist()
        expected += [0.0, *found] if not prompt else [v * w for v, w in zip(found, weights, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert [v == 0 for v in values.tolist()] == [w == 0 for w in batch.weights.tolist()]


def gradients(policy, run):
    policy.zero_grad()
    output = run(policy)
    (1.3 * output.total).backward()
    return [output.total.detach(), *(p.grad.clone() for p in policy.parameters() if p.requires_grad)]


def assert_near(one, two, tolerance=1e-6):
    for ours, theirs in zip(one, two, strict=True):
        assert float((ours - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("cut", ["one block", "many blocks", "two passes"])
@pytest.mark.parametrize("lora", [None, GENTLE])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("statistics", [frozenset(), frozenset({"entropy"})])
def test_fused_equals_plain(cut, lora, dtype, statistics, monkeypatch):
    policy = actor_critic(lora, dtype=dtype)
    if cut != "one block":
        monkeypatch.setattr("lit_align.scoring.flat.chunk_rows", lambda vocabulary: 3)
    if cut == "two passes":
        monkeypatch.setattr(fused, "LARGEST_BLOCK", 1)
        monkeypatch.setattr(fused, "chunk_rows", lambda vocabulary: 3)
    ours = gradients(policy, lambda p: p(forest(), loss=both, statistics=statistics))
    assert policy.layout == "flat"
    assert_near(ours, gradients(policy, lambda p: both(p(forest(), statistics=statistics), forest())))
    assert float(policy.value_head.summary.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("lora", [None, GENTLE])
def test_flat_equals_padded(lora):
    flat, padded = (actor_critic(lora, layout) for layout in ("auto", "padded"))
    # The library's norms compute in float32, whatever the weights are in.
    assert_near(*(gradients(p, lambda p: p(forest(), loss=both)) for p in (flat, padded)), tolerance=1e-5)


def test_gradients_are_the_differences():
    """Along random directions in float64, for hidden states, head and values."""
    batch = forest()
    scored = batch.weights.nonzero().squeeze(1)
    torch.manual_seed(0)
    shapes = [(len(scored), 8), (64, 8), (len(scored),)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    targets = batch.completion_ids[scored]

    def run(hidden, weight, values):
        parts = blocks(batch, scored, 4)
        return head_loss(hidden, Head(weight), targets, parts, both, values=values).total

    grads = torch.autograd.grad(run(*inputs), inputs)
    for _ in range(20):
        direction = [torch.randn_like(t) for t in inputs]
        with torch.no_grad():
            ahead, behind = (
                run(*[t + step * d for t, d in zip(inputs, direction, strict=True)]) for step in (1e-5, -1e-5)
            )
        slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        torch.testing.assert_close((ahead - behind) / 2e-5, slope, rtol=1e-7, atol=1e-7)


def test_a_loss_of_the_values_alone_moves_head_and_trunk():
    policy = actor_critic()
    policy(forest(), loss=lambda s, b: LossOutput((s.values**2).sum(), b.weights.sum(), {})).total.backward()
    assert all(p.grad is not None for p in policy.parameters())
    assert float(policy.model.lm_head.weight.grad.abs().sum()) == 0
    assert float(policy.model.model.layers[0].mlp.up_proj.weight.grad.abs().sum()) > 0


def test_a_loss_that_ignores_the_values_leaves_their_head_alone():
    policy = actor_critic()
    policy(forest(), loss=lambda s, b: LossOutput(-s.logps.sum(), b.weights.sum(), {})).total.backward()
    assert float(policy.value_head.summary.weight.grad.abs().sum()) == 0


def test_without_gradients():
    policy = actor_critic()
    with torch.no_grad():
        scores = policy(forest())
        output = policy(forest(), loss=both)
    assert not output.total.requires_grad
    torch.testing.assert_close(output.total, both(scores, forest()).total)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_a_batch_without_tokens_has_no_values(layout):
    empty = Forest.from_lists([[]], [[[]]])
    policy = actor_critic(layout=layout)
    assert policy(empty).values.shape == (0,)
    assert Critic(policy.model.base_model, policy.value_head, layout=layout)(empty).shape == (0,)


def test_values_are_float32_over_a_low_precision_trunk():
    """bfloat16 would answer 0.1 % wrong; the head multiplies in float32, under autocast too."""
    policy = actor_critic(dtype="bfloat16")
    assert policy.value_head.summary.weight.dtype == torch.float32
    assert policy(forest()).values.dtype == torch.float32
    exact = actor_critic(dtype="float32")
    states = torch.randn(5, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = exact.value_head(states)
    assert torch.equal(inside, exact.value_head(states))


def test_a_critic_of_learned_positions_is_flat_and_gives_its_loss():
    torch.manual_seed(0)
    trunk = GPT2Model(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)).eval()
    head = build_value_head(trunk, RANDOM)
    flat, padded = Critic(trunk, head), Critic(copy.deepcopy(trunk), head, layout="padded")
    squared = lambda v, b: LossOutput((v**2).sum(), b.weights.sum(), {})  # noqa: E731
    one, two = flat(forest(), loss=squared), padded(forest(), loss=squared)
    assert flat.layout == "flat"
    torch.testing.assert_close(one.total, two.total, rtol=1e-5, atol=1e-6)
    one.total.backward()
    assert all(p.grad is not None for p in flat.parameters() if p.requires_grad)


def completions(rows):
    return Forest.from_lists([r["prompt_ids"] for r in rows], [[r["completion_ids"]] for r in rows])


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_golden_value_head(golden, golden_models, layout):
    content = golden("ppo_step")["batches"]
    model = AutoModelForCausalLM.from_pretrained(golden_models / "policy")
    policy = ActorCritic(model, load_value_head(model, golden_models / "value_head"), layout=layout)
    for batch in content.values():
        found = policy(completions(batch["rows"]))
        given = batch["per_token_logps_f64"]
        for ours, name in ((found.values, "values"), (found.logps, "policy")):
            wanted = torch.tensor([x for row in given for x in row[name]])
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_golden_critic(golden, golden_models, layout):
    """A critic that starts from a reward model takes its score head."""
    trunk, head = build_critic(str(golden_models / "critic"))
    critic = Critic(trunk, head, layout=layout)
    content = golden("logprobs")
    rows = content["batches"]["seq_a"]["rows"]
    everywhere = content["by_id"]["critic_values"]["formula_f64"]["scores"]
    wanted = [
        value
        for row, values in zip(rows, everywhere, strict=True)
        for value in values[len(row["prompt_ids"]) - 1 : -1]
    ]
    torch.testing.assert_close(critic(completions(rows)), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
