from transformers import LlamaConfig, LlamaForCausalLM

from lit_align.models.sharding import layers


def test_layers_are_the_decoder_layers():
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=3, **heads)
    model = LlamaForCausalLM(config)
    assert layers(model) == list(model.model.layers)
    assert layers(model.lm_head) == []
