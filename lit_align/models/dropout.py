"""Switching a model's own dropout off, where two passes have to agree."""

from torch import nn

# transformers' attention functions take a rate from an attribute instead of a module.
_RATES = ("attention_dropout", "activation_dropout", "dropout", "layerdrop", "attn_dropout_prob")


def remove_dropout(model: nn.Module) -> None:
    """Set every dropout rate of the base model to 0, in place; the dropout of adapters stays.

    A preference loss compares the policy with a reference that has no dropout. With noise on one side
    only, the first loss is not ln 2 and the rewards measure the noise.
    """
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for rate in _RATES:
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
