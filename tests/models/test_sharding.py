import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_align.models.sharding import layers, separate


def test_layers_are_the_decoder_layers():
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=3, **heads)
    model = LlamaForCausalLM(config)
    assert layers(model) == list(model.model.layers)
    assert layers(model.lm_head) == []


def test_what_scorers_share_is_copied_once_for_each():
    one, two = nn.Linear(2, 2), nn.Module()
    two.first, two.again = nn.Linear(2, 2), nn.Linear(2, 2)
    two.first.weight = two.again.weight = one.weight
    before = one.weight
    separate([one, two])
    assert one.weight is before
    assert two.first.weight is two.again.weight
    assert two.first.weight is not one.weight
    assert torch.equal(two.first.weight, one.weight)
    assert two.first.bias is not two.again.bias
