"""What a model is, as plain data: saved with every run, written in YAML, built later."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import torch

#: Names a dtype may be given by, beside ``auto``.
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_SHORT = {
    "fp32": "float32",
    "32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "16": "float16",
    "fp64": "float64",
}


def dtype_name(value: Any, what: str, extra: tuple[str, ...] = ()) -> str:
    """The full name of a dtype, from ``bf16``, ``torch.bfloat16`` or ``"torch.bfloat16"``.

    Args:
        value: what the user wrote.
        what: the field it was written for, for the error.
        extra: other words the field takes, ``auto`` for one.

    >>> dtype_name("bf16", "dtype"), dtype_name(torch.float32, "dtype")
    ('bfloat16', 'float32')
    """
    name = str(value).strip().lower().removeprefix("torch.")
    name = _SHORT.get(name, name)
    if name in DTYPES or name in extra:
        return name
    known = [*extra, *DTYPES, *_SHORT]
    raise ValueError(f"{what} {value!r} is not a dtype{nearest(name, known)} (known: {', '.join(known)})")


@dataclass
class LoraConfig:
    """Low-rank adapters on a frozen model (Hu et al. 2021, arXiv 2106.09685)."""

    r: int = 16
    """Rank of the adapter matrices."""

    alpha: float = 32
    """Scale of the adapter's output: alpha / r, or alpha / sqrt(r) with rslora."""

    dropout: float = 0.0
    """Dropout on the adapter's input while training."""

    targets: str | list[str] = "all-linear"
    """Modules that get an adapter: `all-linear`, names ([q_proj, v_proj]), or a regular expression."""

    dora: bool = False
    """Learn the magnitude of each weight column separately (DoRA, arXiv 2402.09353)."""

    rslora: bool = False
    """Scale by alpha / sqrt(r), so that large ranks keep learning (rsLoRA, arXiv 2312.03732)."""

    modules_to_save: list[str] | None = None
    """Modules trained and saved whole beside the adapters; a reward model's head is always among them."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""

    dtype: str = "float32"
    """dtype of the adapters. They are small and are what is trained, and bfloat16 has too few digits for a
    small AdamW step: so float32 whatever the base is in. `base` gives them the base's dtype, for weights that
    are sharded in groups of one dtype."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of peft.LoraConfig, passed on as they are (init_lora_weights, rank_pattern, ...)."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"lora.r is {self.r}; the rank must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}; it must be at least 0 and below 1")
        if not self.targets:
            raise ValueError("lora.targets is empty; name modules, or use 'all-linear'")
        if self.bias not in ("none", "all", "lora_only"):
            raise ValueError(f"lora.bias is {self.bias!r}; it must be none, all or lora_only")
        self.dtype = dtype_name(self.dtype, "lora.dtype", ("base",))
        if self.dtype not in ("float32", "base"):
            raise ValueError(f"lora.dtype is {self.dtype!r}; it must be float32 or base")
        clash = sorted(set(self.extra) & set(_PEFT_NAMES))
        if clash:
            ours = ", ".join(f"lora.{_PEFT_NAMES[name]}" for name in clash)
            raise ValueError(f"lora.extra sets {', '.join(clash)}; use {ours}")


#: Fields of peft that have a field of ours.
_PEFT_NAMES = {
    "r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "use_dora": "dora",
    "use_rslora": "rslora",
    "modules_to_save": "modules_to_save",
    "bias": "bias",
}


@dataclass
class QuantizationConfig:
    """A frozen base in 4 or 8 bits (bitsandbytes); adapters on top are what is trained."""

    kind: Literal["nf4", "int8"] = "nf4"
    """nf4: 4-bit NormalFloat (QLoRA, arXiv 2305.14314); int8: LLM.int8() (arXiv 2208.07339)."""

    compute_dtype: str = "auto"
    """dtype of the products with 4-bit weights; `auto` takes the model's own."""

    double_quant: bool = True
    """Quantise the scales of 4-bit blocks too: 0.4 bits less per weight."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of transformers.BitsAndBytesConfig (llm_int8_threshold, ...)."""

    def __post_init__(self) -> None:
        if self.kind not in ("nf4", "int8"):
            hint = nearest(str(self.kind), ["nf4", "int8"])
            raise ValueError(f"quantization.kind is {self.kind!r}{hint}; it must be nf4 or int8")
        self.compute_dtype = dtype_name(self.compute_dtype, "quantization.compute_dtype", ("auto",))


@dataclass
class ModelConfig:
    """Where a model comes from and how it is built. Plain data; nothing is loaded until it is built."""

    path: str = ""
    """Hub name (`org/name`), local directory, or a model the package carries (`lit-align/tiny`)."""

    dtype: str = "auto"
    """dtype of the weights: `auto` (the checkpoint's own), float32, bfloat16, float16."""

    attn_implementation: str | None = None
    """Attention of transformers: sdpa, flex_attention, flash_attention_2, ... (flat rows), eager (padded); by
    default the model's own choice."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for a source you trust; pin `revision` with it."""

    revision: str | None = None
    """Branch, tag or commit on the Hub."""

    from_scratch: bool = False
    """Random weights from `seed`, for a directory that has a config.json (and a tokenizer) but no weights."""

    seed: int = 0
    """Seed of everything that starts random: weights from scratch, a new reward head, new adapters."""

    adapter: str | None = None
    """An existing LoRA adapter (directory or Hub name) to go on training."""

    lora: LoraConfig | None = None
    """New LoRA adapters; without them all weights are trained."""

    quantization: QuantizationConfig | None = None
    """Load the base in 4 or 8 bits."""

    architecture: dict[str, Any] | None = None
    """Instead of a path: a configuration of transformers (`model_type` and what differs from its defaults);
    random weights from `seed`."""

    def __post_init__(self) -> None:
        self.lora = _nested(LoraConfig, self.lora, "lora")
        self.quantization = _nested(QuantizationConfig, self.quantization, "quantization")
        self.path = str(self.path) if self.path else ""
        self.dtype = dtype_name(self.dtype, "dtype", ("auto",))
        if bool(self.path) == bool(self.architecture):
            found = f"both path {self.path!r} and architecture" if self.path else "neither"
            raise ValueError(f"a model needs a path or an architecture; found {found}")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("architecture has no model_type (llama, qwen2, gpt2, ...)")
        if self.lora is not None and self.adapter is not None:
            raise ValueError(
                f"both adapter ({self.adapter}) and lora are set: adapter goes on training an existing one, "
                "lora starts a new one. Remove one of them."
            )
        if self.quantization is not None and self.random_weights:
            raise ValueError("quantization with random weights: there is nothing to load in 4 or 8 bits")

    @property
    def random_weights(self) -> bool:
        """Whether the weights start random instead of being loaded."""
        return self.from_scratch or self.architecture is not None

    @classmethod
    def coerce(cls, value: Any) -> "ModelConfig":
        """A description from whatever names a model.

        Args:
            value: a name or directory, a dict of fields, a dict with ``model_type`` or a configuration
                object of transformers (random weights), or a description, returned as it is.

        >>> ModelConfig.coerce("some/model").path
        'some/model'
        >>> ModelConfig.coerce({"path": "some/model", "lora": {"r": 8}}).lora.r
        8
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, dict):
            if "model_type" in value:
                return cls(architecture=dict(value))
            check_fields(cls, value, "policy")
            return cls(**value)
        if hasattr(value, "to_diff_dict") and getattr(value, "model_type", None):
            return cls(architecture={"model_type": value.model_type, **value.to_diff_dict()})
        if isinstance(value, str) or hasattr(value, "__fspath__"):
            return cls(path=str(value))
        raise TypeError(
            f"a model is a name, a directory, a dict of fields, a ModelConfig or a configuration of "
            f"transformers, not {type(value).__name__}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which :meth:`coerce` makes an equal description."""
        return asdict(self)


if TYPE_CHECKING:
    from torch import nn

    PolicyLike = ModelConfig | str | Mapping[str, Any] | nn.Module | None
else:
    # What the command line's parser sees: the fields alone. A union would accept any mapping, and a
    # misspelt field would be answered with a list of types. Python may give any of the above.
    PolicyLike = ModelConfig


def check_fields(cls: type, given: dict[str, Any], what: str) -> None:
    """Refuse names that are not fields of a dataclass, with the nearest that is.

    >>> check_fields(LoraConfig, {"rank": 8}, "lora")
    Traceback (most recent call last):
    ...
    ValueError: lora has no field 'rank' (fields: r, alpha, dropout, targets, dora, rslora, ...
    """
    known = [f.name for f in fields(cls)]
    for name in given:
        if name not in known:
            hint = nearest(name, known)
            raise ValueError(f"{what} has no field {name!r}{hint} (fields: {', '.join(known)})")


def _nested(cls: type, value: Any, what: str) -> Any:
    if value is None or isinstance(value, cls):
        return value
    if isinstance(value, dict):
        check_fields(cls, value, what)
        return cls(**value)
    raise TypeError(f"{what} is a {cls.__name__} or a dict of its fields, not {type(value).__name__}")


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the name that was probably meant, if one comes near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
