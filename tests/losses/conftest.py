"""The tiny models of the reference numbers, run in float64, one unpadded row at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor


@dataclass
class Network:
    """A tiny model: what it says of rows, and gradients of that.

    Attributes:
        model: the transformers model, in float64.
        head: ``(weight [1, H], bias [1])`` of a value head on the last hidden state, where it has one.
    """

    model: torch.nn.Module
    head: tuple[Tensor, Tensor] | None = None

    @property
    def parameters(self) -> dict[str, Tensor]:
        extra = dict(zip(("v_head.summary.weight", "v_head.summary.bias"), self.head or (), strict=False))
        return {**dict(self.model.named_parameters()), **extra}

    def hidden(self, row: dict[str, Any]) -> Tensor:
        """``[T, H]`` of prompt and completion, after the last norm."""
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        return self.model.get_decoder()(ids).last_hidden_state[0]

    def logits(self, row: dict[str, Any]) -> Tensor:
        """``[L, V]`` that predict the completion tokens."""
        return self.model.lm_head(self.hidden(row)[len(row["prompt_ids"]) - 1 : -1])

    def state_values(self, row: dict[str, Any]) -> Tensor:
        """``[L + 1]`` values of the states before each completion token, and of the one after the last."""
        states = self.hidden(row)[len(row["prompt_ids"]) - 1 :]
        if self.head is not None:
            return (states @ self.head[0].T + self.head[1]).squeeze(-1)
        return self.model.score(states).squeeze(-1)

    def gradients(self, outputs: list[Tensor], slopes: list[Tensor]) -> dict[str, Tensor]:
        """Gradient of ``Σ slope · output`` in each parameter that it reaches."""
        names, tensors = zip(*self.parameters.items(), strict=True)
        found = torch.autograd.grad(outputs, tensors, slopes, retain_graph=True, allow_unused=True)
        return {name: g for name, g in zip(names, found, strict=True) if g is not None}


@pytest.fixture(scope="session")
def network(golden_models) -> Callable[..., Network]:
    """``network(name)``: ``policy`` (with value head if asked), ``reference``, ``critic``, ``reward``."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    found: dict[str, torch.nn.Module] = {}

    def load(name: str, value_head: bool = False) -> Network:
        if name not in found:
            causal = name in ("policy", "reference")
            kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
            options = {} if causal else {"num_labels": 1}
            found[name] = kind.from_pretrained(
                golden_models / name, dtype=torch.float64, attn_implementation="eager", **options
            )
        if not value_head:
            return Network(found[name])
        tensors = load_file(golden_models / "value_head" / "value_head.safetensors")
        keys = ("v_head.summary.weight", "v_head.summary.bias")
        return Network(found[name], tuple(tensors[key].double().requires_grad_() for key in keys))

    return load


@pytest.fixture(scope="session")
def check_gradients() -> Callable[[dict[str, Tensor], dict[str, Any], str], None]:
    """Compare a network's gradients with the reference numbers: the norm, and the entries that are given."""

    def check(gradients: dict[str, Tensor], expected: dict[str, Any], prefix: str = "") -> None:
        norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
        # The library's Llama keeps float32 inside its norms and rotary tables.
        assert norm == pytest.approx(expected[f"{prefix}grad_norm"], rel=2e-5, abs=1e-9)
        for name, entries in expected[f"{prefix}grads"].items():
            own = gradients[name].flatten()[: len(entries)].tolist()
            assert own == pytest.approx(entries, rel=1e-3, abs=2e-6), name

    return check
