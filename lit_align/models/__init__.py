"""From a description to a model: weights, adapters, quantisation, heads, tokenizer."""
