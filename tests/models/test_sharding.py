import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_align.models.sharding import data_mesh, layers, separate


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


class Mesh(dict):
    """As of a strategy, by its dimensions' sizes."""

    def __init__(self, data: int, tensor: int) -> None:
        super().__init__(data_parallel=Side(data), tensor_parallel=Side(tensor))


class Side:
    def __init__(self, count: int) -> None:
        self.count = count

    def size(self) -> int:
        return self.count


def test_tensor_parallelism_is_refused_instead_of_copying():
    assert data_mesh(Mesh(4, 1)).size() == 4
    with pytest.raises(ValueError, match="tensor_parallel_size is 2, and the layers are not split"):
        data_mesh(Mesh(1, 2))
