"""Encoder-decoder models against transformers' own forward, one completion at a time."""

import copy
import math

import lightning as L
import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader

from lit_align import DPO, SFT
from lit_align.algorithms.optim import OptimConfig
from lit_align.batches import Forest
from lit_align.models.build import build_causal_lm
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.models.critic import build_actor_critic, build_critic
from lit_align.models.export import save_pretrained_dir
from lit_align.models.value_head import ValueHeadConfig
from lit_align.outputs import LossOutput
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.transformers_generator import TransformersGenerator
from lit_align.scoring.adapters import adapter_lent, adapter_tensors
from lit_align.scoring.critic import ActorCritic, Critic
from lit_align.scoring.policy import Policy
from lit_align.scoring.references import AdapterOff
from lit_align.scoring.value_adapter import ValueAdapter

T5 = {
    "model_type": "t5",
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    # Of the size that words have in a trained model; T5's own is made for d_model in the hundreds.
    "initializer_factor": 0.3,
}
BART = {
    "model_type": "bart",
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.2,
}
RANDOM = ValueHeadConfig("normal", std=0.3)


def forest() -> Forest:
    return Forest.from_lists(
        [[5, 6, 7, 1], [8, 1]],
        [[[9, 10, 1], [11, 1], [12, 13, 14, 15, 1]], [[16, 1], []]],
        weights=[[[1, 1, 1], [1, 1], [1, 0, 1, 1, 1]], [[1, 1], []]],
    )


def pairs() -> Forest:
    return Forest.from_lists([[5, 6, 7, 1], [8, 1]], [[[9, 10, 1], [11, 1]], [[12, 13, 1], [14, 15, 16, 1]]])


def alone(model, prompt, completion):
    """transformers' own shift of the labels: log-probs and last decoder states of one completion."""
    labels = torch.tensor([completion])
    output = model(input_ids=torch.tensor([prompt]), labels=labels, output_hidden_states=True)
    logps = output.logits[0].log_softmax(-1)[range(len(completion)), completion]
    return logps, output.decoder_hidden_states[-1][0]


@pytest.mark.parametrize("architecture", [T5, BART], ids=["t5", "bart"])
@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, alpha=1, extra={"init_lora_weights": False})])
def test_log_probs_and_values_equal_one_completion_at_a_time(architecture, lora):
    config = ModelConfig(architecture=architecture, lora=lora)
    policy = ActorCritic(*build_actor_critic(config, RANDOM)).eval()
    batch = forest()
    calls = []
    encoder = policy.model.get_base_model() if lora else policy.model
    encoder.get_encoder().register_forward_hook(lambda m, a, o: calls.append(o.last_hidden_state.shape[0]))
    with torch.no_grad():
        scores = policy(batch)
        assert calls == [batch.num_prompts], "each prompt is encoded once, for all its completions"
        logps, values = [], []
        for prompt, completion, weights in batch.sequences():
            if completion:
                own, states = alone(policy.model, prompt, completion)
                logps += (own * torch.tensor(weights)).tolist()
                values += (policy.value_head(states) * torch.tensor(weights)).tolist()
    assert policy.layout == "padded"
    assert scores.logps.tolist() == pytest.approx(logps, rel=1e-5, abs=1e-5)
    assert scores.values.tolist() == pytest.approx(values, rel=1e-5, abs=1e-5)
    assert max(map(abs, values)) > 0.1


def test_a_critic_of_its_own_reads_the_decoder(tmp_path):
    policy = ActorCritic(*build_actor_critic({"architecture": T5}, RANDOM)).eval()
    path = save_pretrained_dir(policy.model, None, tmp_path / "t5", value_head=policy.value_head)
    critic = Critic(*build_critic(str(path))).eval()
    assert type(critic.model).__name__ == "T5Model"
    again = ActorCritic(*build_actor_critic(str(path))).eval()
    with torch.no_grad():
        wanted = policy(forest()).values
        torch.testing.assert_close(critic(forest()), wanted)
        assert torch.equal(again(forest()).values, wanted)
    critic(forest(), loss=lambda v, b: LossOutput((v**2).sum(), b.weights.sum(), {})).total.backward()
    assert all(p.grad is not None for p in critic.parameters())


def test_a_value_adapter_reads_the_decoder_too():
    lora = LoraConfig(r=2, alpha=1, extra={"init_lora_weights": False})
    policy = Policy(build_causal_lm(ModelConfig(architecture=T5, lora=lora))).eval()
    critic = ValueAdapter(policy, value_head=RANDOM).eval()
    batch, values = forest(), []
    with torch.no_grad():
        found = critic(batch)
        with adapter_lent(policy.model, "value"):
            for prompt, completion, weights in batch.sequences():
                if completion:
                    states = alone(policy.model, prompt, completion)[1]
                    values += (critic.value_head(states) * torch.tensor(weights)).tolist()
    assert found.tolist() == pytest.approx(values, rel=1e-5, abs=1e-5)
    critic(batch, loss=lambda v, b: LossOutput((v**2).sum(), b.weights.sum(), {})).total.backward()
    assert all(p.grad is not None for p in adapter_tensors(policy.model, "value").values())


def step(module, batch):
    """One step of plain descent at rate 1 through the trainer; the loss, and the weights after it."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch], batch_size=None))
    return float(trainer.callback_metrics["train/loss"]), dict(module.policy.model.named_parameters())


def descend(model, loss):
    """The same by hand."""
    loss.backward()
    with torch.no_grad():
        return {name: p - p.grad for name, p in model.named_parameters()}


PLAIN = OptimConfig(name="torch.optim.SGD", schedule="constant")


def test_a_step_of_sft_is_one_of_transformers_own_loss():
    model = build_causal_lm({"architecture": T5 | {"dropout_rate": 0.0}})
    theirs = copy.deepcopy(model)
    batch = pairs()
    loss, after = step(SFT(model, lr=1.0, optim=PLAIN), batch)
    rows = list(batch.sequences())
    width = max(len(c) for _, c, _ in rows)
    length = max(len(p) for p, _, _ in rows)
    ids = torch.tensor([p + [0] * (length - len(p)) for p, _, _ in rows])
    labels = torch.tensor([c + [-100] * (width - len(c)) for _, c, _ in rows])
    mask = torch.tensor([[1] * len(p) + [0] * (length - len(p)) for p, _, _ in rows])
    wanted = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for name, weight in descend(theirs, wanted).items():
        torch.testing.assert_close(after[name], weight, rtol=1e-5, atol=1e-6)


def test_a_step_of_dpo_is_one_of_its_formula_on_transformers_log_probs():
    model = build_causal_lm({"architecture": T5})
    start, theirs = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    with torch.no_grad():  # the policy has moved, so that the loss is not ln 2
        for p in [*model.parameters()]:
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        theirs.load_state_dict(model.state_dict())
    batch = pairs()
    module = DPO(copy.deepcopy(start), beta=0.5, lr=1.0, optim=PLAIN)
    module.configure_model()
    with torch.no_grad():
        assert float(module._run(batch, logging=False).total) / 2 == pytest.approx(math.log(2), abs=1e-6)
    module.policy.model.load_state_dict(model.state_dict())
    loss, after = step(module, batch)
    rows = list(batch.sequences())
    ratios = [alone(theirs, p, c)[0].sum() - alone(start, p, c)[0].sum().detach() for p, c, _ in rows]
    wanted = -(logsigmoid(0.5 * (ratios[0] - ratios[1])) + logsigmoid(0.5 * (ratios[2] - ratios[3]))) / 2
    assert loss == pytest.approx(wanted.item(), rel=1e-4)
    assert abs(loss - math.log(2)) > 1e-3
    for name, weight in descend(theirs, wanted).items():
        torch.testing.assert_close(after[name], weight, rtol=1e-4, atol=1e-6)


def test_the_base_under_adapters_is_a_reference():
    lora = LoraConfig(r=4, extra={"init_lora_weights": False})
    policy = Policy(build_causal_lm(ModelConfig(architecture=T5, lora=lora))).train()
    reference = AdapterOff()
    reference.attach(policy)
    with torch.no_grad():
        plain = Policy(build_causal_lm({"architecture": T5}).eval())(forest()).logps
    torch.testing.assert_close(reference.score(forest()), plain)


def test_what_was_generated_is_scored_the_same():
    policy = ActorCritic(*build_actor_critic({"architecture": T5}, RANDOM)).eval()
    rollout = TransformersGenerator().generate(
        policy,
        None,
        [[5, 6, 7, 1], [8, 1]],
        completions=3,
        sampling=Sampling(max_new_tokens=6),
        seeds=range(6),
        value_head=policy.value_head,
    )
    with torch.no_grad():
        scores = policy(rollout)
    torch.testing.assert_close(rollout.token_columns["old_logps"], scores.logps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rollout.token_columns["values"], scores.values, rtol=1e-4, atol=1e-5)


def test_what_it_cannot_do_is_refused():
    model = build_causal_lm({"architecture": T5})
    with pytest.raises(ValueError, match="row 7 has an empty prompt"):
        Policy(model)(Forest.from_lists([[1], []], [[[2, 3]], [[4, 5]]], rows=[6, 7]))
    with pytest.raises(ValueError, match="has an encoder"):
        Policy(model, layout="flat")
    with pytest.raises(ValueError, match="neftune_alpha is for decoders"):
        Policy(model, neftune_alpha=5.0)
    with pytest.raises(ValueError, match="no router loss"):
        Policy(model)(forest(), statistics=frozenset({"router_loss"}))
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="what its decoder starts with"):
        Policy(model)(forest())
