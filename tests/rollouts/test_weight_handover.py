"""New weights reach a server in another thread through a directory."""

import copy

import pytest
import torch

from lit_align.models.build import build_causal_lm
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.server import ServerGenerator
from lit_align.rollouts.weight_handover import AdapterHandover, CheckpointHandover
from lit_align.scoring.policy import Policy
from tests.rollouts.small_server import SmallServer, serving

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
REQUEST = {"completions": 2, "sampling": Sampling(10), "seeds": [1, 2, 3, 4]}
PROMPTS = [[5, 6], [7]]


def train(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))


def agree(generator, policy):
    """What the server writes is what the policy writes, with the policy's log-probs."""
    found = generator.generate(policy, None, PROMPTS, **REQUEST)
    expected = NativeGenerator().generate(policy, None, PROMPTS, **REQUEST)
    ours, theirs = found.token_columns["old_logps"], expected.token_columns["old_logps"]
    return torch.equal(found.completion_ids, expected.completion_ids) and torch.allclose(
        ours, theirs, atol=1e-4
    )


def test_an_adapter_under_a_new_name_each_time(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(architecture=ARCHITECTURE, lora=LoraConfig(r=4, extra={"init_lora_weights": False}))
    model = build_causal_lm(config)
    server = SmallServer(copy.deepcopy(model).unload())
    with serving(server) as url:
        handover = AdapterHandover(str(tmp_path / "adapters"))
        generator = ServerGenerator(url, "base", handover)
        policy = Policy(model)
        assert not agree(generator, policy)
        for version in range(4):
            train(policy)
            generator.sync(policy, version)
            assert agree(generator, policy)
            train(policy)
            assert not agree(generator, policy)
    names = [f"lit-align-{handover.run}-{version}" for version in (2, 3)]
    assert sorted(server.adapters) == names
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == names


def test_a_run_that_goes_on_does_not_meet_its_old_names(tmp_path):
    """A server that knows a name keeps what it has under it, and vLLM says so with an error."""
    torch.manual_seed(0)
    config = ModelConfig(architecture=ARCHITECTURE, lora=LoraConfig(r=4, extra={"init_lora_weights": False}))
    model = build_causal_lm(config)
    policy = Policy(model)
    server = SmallServer(copy.deepcopy(model).unload())
    with serving(server) as url:
        for _ in range(2):
            generator = ServerGenerator(url, "base", AdapterHandover(str(tmp_path / "adapters")))
            train(policy)
            generator.sync(policy, 0)
            assert agree(generator, policy)
    assert len(server.adapters) == 2


def test_a_checkpoint_in_the_place_of_the_old_one(tmp_path):
    torch.manual_seed(0)
    model = build_causal_lm(ModelConfig(architecture=ARCHITECTURE))
    folder = tmp_path / "model"
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    (folder / "tokenizer.json").write_text("{}")
    server = SmallServer(copy.deepcopy(model), folder)
    with serving(server) as url:
        handover = CheckpointHandover(str(folder), requests=[("/reload", {"how": "now"})])
        generator = ServerGenerator(url, "base", handover)
        policy = Policy(model)
        train(policy)
        assert not agree(generator, policy)
        generator.sync(policy, 0)
        assert agree(generator, policy)
    assert ("/reload", {"how": "now"}) in server.requests
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_handover_keeps_what_the_server_has(tmp_path):
    model = build_causal_lm(ModelConfig(architecture=ARCHITECTURE))
    server = SmallServer(copy.deepcopy(model))
    with serving(server) as url:
        ServerGenerator(url, "base").sync(Policy(model), 3)
    assert server.requests == []


def test_the_wrong_way_round(tmp_path):
    whole = Policy(build_causal_lm(ModelConfig(architecture=ARCHITECTURE)))
    adapted = Policy(build_causal_lm(ModelConfig(architecture=ARCHITECTURE, lora=LoraConfig(r=4))))
    with pytest.raises(ValueError, match="has no adapter; give it LoRA"):
        AdapterHandover(str(tmp_path)).check(whole)
    with pytest.raises(ValueError, match="has an adapter; use AdapterHandover"):
        CheckpointHandover(str(tmp_path)).check(adapted)


def test_another_machine_names_the_folder_otherwise(tmp_path):
    found = []

    class Client:
        def post(self, path, body):
            found.append((path, body))

    handover = AdapterHandover(str(tmp_path), "/mnt/weights/")
    handover.run = "c0ffee"
    handover.tell(7, Client())
    name = "lit-align-c0ffee-7"
    assert found == [("/v1/load_lora_adapter", {"lora_name": name, "lora_path": f"/mnt/weights/{name}"})]
