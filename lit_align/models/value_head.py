"""A value head: one number per hidden state, saved beside an ordinary model.

The file and the names inside are those of the ``value_head.safetensors`` that other trainers write, so that
heads can be exchanged, and a directory with one still loads as the model that it is without.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_align.models.config import nearest
from lit_align.models.seeding import seeded

#: Name of the file beside a model's own.
FILE = "value_head.safetensors"
_WEIGHT, _BIAS = "v_head.summary.weight", "v_head.summary.bias"


@dataclass
class ValueHeadConfig:
    """How a value head starts where there is none to load."""

    init: Literal["zeros", "normal", "transformers"] = "zeros"
    """zeros: every value is 0 at first; normal: weights drawn with `std`; transformers: as that library
    draws the head of a classifier (the model's own `initializer_range`). The bias starts at 0."""

    std: float | None = None
    """Standard deviation of `normal`; by default 1 / sqrt(hidden size + 1), as Stiennon et al. 2020
    (arXiv 2009.01325, appendix C.1) draw a reward head."""

    dropout: float = 0.0
    """Dropout on the hidden state while training. The values of a rollout are made without."""

    seed: int = 0
    """Seed of the drawn weights."""

    def __post_init__(self) -> None:
        known = ["zeros", "normal", "transformers"]
        if self.init not in known:
            hint = nearest(str(self.init), known)
            raise ValueError(f"value head: init is {self.init!r}{hint}; it must be {', '.join(known)}")
        if self.std is not None and self.init != "normal":
            raise ValueError(f"value head: std goes with init: normal, but init is {self.init!r}")
        if self.std is not None and self.std <= 0:
            raise ValueError(f"value head: std is {self.std}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"value head: dropout is {self.dropout}; it must be at least 0 and below 1")


class ValueHead(nn.Module):
    """A linear function of a hidden state, with dropout before it.

    Args:
        width: size ``D`` of a hidden state.
        dropout: rate while training.
        dtype: of its weights.
        device: of its weights.
    """

    def __init__(
        self,
        width: int,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.summary = nn.Linear(width, 1, dtype=dtype, device=device)

    def forward(self, states: Tensor) -> Tensor:
        """Values ``[*]`` of states ``[*, D]``, in float32 at least, under autocast too.

        A value is compared with a return to its last digits, and bfloat16 has two of them.
        """
        with torch.autocast(states.device.type, enabled=False):
            weight = self.summary.weight
            values = self.summary(self.dropout(states.to(weight.dtype))).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))


def build_value_head(model: Any, config: ValueHeadConfig | None = None) -> ValueHead:
    """A new value head for the hidden states of a model, on its device.

    Args:
        model: of transformers, with or without adapters.
        config: how it starts.
    """
    config = config or ValueHeadConfig()
    text = model.config.get_text_config()
    # The decoder's states may be narrower than the embeddings that lead to them (OPT).
    width = int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)
    head = ValueHead(width, config.dropout, _dtype(model), _device(model))
    std = {
        "zeros": 0.0,
        "normal": config.std or 1 / math.sqrt(width + 1),
        "transformers": float(getattr(text, "initializer_range", 0.02)),
    }[config.init]
    with seeded(config.seed), torch.no_grad():
        # Drawn on the host, so that a seed means the same head on every device.
        drawn = torch.randn(1, width) * std
        head.summary.weight.copy_(drawn)
        head.summary.bias.zero_()
    return head


def save_value_head(
    head: ValueHead, directory: str | Path, state: Mapping[str, Tensor] | None = None
) -> Path:
    """Write the head's weights into the directory of a model.

    Args:
        head: the head.
        directory: of the model.
        state: its whole weights, where it is sharded and holds a part of them itself.

    Returns:
        The file.
    """
    from safetensors.torch import save_file

    path = Path(directory) / FILE
    state = head.state_dict() if state is None else state
    tensors = {_WEIGHT: state["summary.weight"], _BIAS: state["summary.bias"]}
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, {"format": "pt"})
    return path


def has_value_head(directory: str | Path) -> bool:
    """Whether a value head lies in a directory."""
    return (Path(directory) / FILE).is_file()


def load_value_head(model: Any, directory: str | Path, dropout: float = 0.0) -> ValueHead:
    """The value head that lies beside a model.

    Args:
        model: whose states it is for, and on whose device it is put.
        directory: of the model.
        dropout: rate while training, which is not in the file.

    Raises:
        ValueError: the file has other names or another width.
    """
    from safetensors.torch import load_file

    path = Path(directory) / FILE
    found = load_file(path)
    if found.keys() != {_WEIGHT, _BIAS}:
        raise ValueError(
            f"{path} has {', '.join(sorted(found)) or 'nothing'}; expected {_WEIGHT} and {_BIAS}"
        )
    head = build_value_head(model, ValueHeadConfig(dropout=dropout))
    put_weights(head, found[_WEIGHT], found[_BIAS], str(path))
    return head


@torch.no_grad()
def put_weights(head: ValueHead, weight: Tensor, bias: Tensor | None, source: str) -> None:
    """Give a head the weights ``[1, D]`` and bias ``[1]`` of another; no bias is one of 0.

    Args:
        head: whose weights are replaced.
        weight: of a linear layer with one output.
        bias: of the same.
        source: where they come from, for the error.

    Raises:
        ValueError: another shape.
    """
    wanted = head.summary.weight.shape
    if weight.shape != wanted:
        raise ValueError(
            f"the head in {source} is {list(weight.shape)}, the model needs {list(wanted)}: "
            "it belongs to another model"
        )
    head.summary.weight.copy_(weight)
    head.summary.bias.zero_() if bias is None else head.summary.bias.copy_(bias)


def _dtype(model: Any) -> torch.dtype:
    # Small, trained, and compared with returns: float32 whatever the model is in.
    return torch.promote_types(model.dtype, torch.float32)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
