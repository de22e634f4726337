"""Finding the model in modules of all shapes."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lit_align import SFT
from lit_align.callbacks.model_lookup import find_model, find_tokenizer


def _module(**parts: Any) -> L.LightningModule:
    module = L.LightningModule()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def test_the_only_one_is_found_whatever_it_is_called(make_model) -> None:
    for model in (make_model(), make_model(lora=True)):
        assert find_model(_module(inner=nn.ModuleDict({"net": model}), head=nn.Linear(2, 2))) is model
        assert find_model(_module(model=torch.compile(model))) is model
        assert find_model(_module(net=torch.compile(model))) is model


def test_ours(tokenizer) -> None:
    module = SFT("lit-align/tiny")
    module.configure_model()
    assert find_model(module) is module.policy.model
    assert find_tokenizer(module) is module.tokenizer


def test_the_usual_names_go_before_others(make_model) -> None:
    policy, other = make_model(), make_model()
    assert find_model(_module(model=policy, reference=other)) is policy
    wrapped = nn.Module()
    wrapped.model = policy
    assert find_model(_module(critic=other, policy=wrapped)) is policy


def test_the_only_trained_one_among_several(make_model) -> None:
    module = _module(actor=make_model(), old=make_model().requires_grad_(False))
    assert find_model(module) is module.actor


def test_several_are_named(make_model) -> None:
    module = _module(actor=make_model(), critic=make_model(lora=True))
    with pytest.raises(ValueError, match=r"2 models.*actor \(Llama.*, critic \(Peft.*model='actor'"):
        find_model(module)
    assert find_model(module, "critic") is module.critic


def test_a_wrong_name_and_no_model(make_model) -> None:
    with pytest.raises(ValueError, match=r"model='actor.net'.*no such attribute.*it has net \(Llama"):
        find_model(_module(net=make_model()), "actor.net")
    with pytest.raises(ValueError, match="a Linear there"):
        find_model(_module(net=make_model(), head=nn.Linear(1, 1)), "head")
    with pytest.raises(ValueError, match="holds no model of transformers"):
        find_model(_module(head=nn.Linear(1, 1)))


def test_tokenizers(tokenizer) -> None:
    assert find_tokenizer(_module(processing_class=tokenizer)) is tokenizer
    assert find_tokenizer(_module(mine=tokenizer), "mine") is tokenizer
    assert find_tokenizer(_module(), datamodule=_module(tokenizer=tokenizer)) is tokenizer
    with pytest.raises(ValueError, match=r"no tokenizer.*Give tokenizer="):
        find_tokenizer(_module(tokenizer="a name"))
    with pytest.raises(ValueError, match="no tokenizer"):
        find_tokenizer(SFT({"architecture": {"model_type": "llama"}}))
