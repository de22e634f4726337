"""Does a flat row keep its documents apart in this model? Asked of the model itself."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from lit_align.batches import Forest
from lit_align.scoring import flat, padded, trunk
from lit_align.scoring.adapters import evaluating
from lit_align.scoring.attention import FORMS, install, needs_low_precision
from lit_align.scoring.layout import flat_layout

logger = logging.getLogger(__name__)

# Largest difference of a log-prob between the layouts. A leak moves log-probs by tenths in a trained model.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
_LOW_PRECISION = 0.1


def longest_document(model: Any) -> int | None:
    """Length up to which every layer attends to all of a document; ``None`` for no limit."""
    config = padded.base_model(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", True)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        slides = slides and any("sliding" in kind for kind in kinds)
    return int(window) if window and slides else None


def fits(model: nn.Module) -> bool:
    """Whether the model scores flat rows exactly; says why where it does not.

    Installs the attention of flat rows, scores a small forest in both layouts, and compares.
    """
    reason = _reason(model)
    if reason is not None:
        logger.info("batches are padded, not flat: %s", reason)
    return reason is None


def _reason(model: nn.Module) -> str | None:
    inner: Any = padded.base_model(model)
    name = type(inner).__name__
    if getattr(inner.config, "is_encoder_decoder", False):
        return f"{name} has an encoder"
    if getattr(inner.config, "is_causal", True) is False:
        return f"{name} is not causal"
    if not install(inner):
        return f"{name} attends through {inner.config._attn_implementation!r}, not one of {', '.join(FORMS)}"
    if inner.get_output_embeddings() is None and not _is_trunk(inner) and not hasattr(inner, "score"):
        return f"{name} has no output head"
    batch = probe(inner.config.get_text_config().vocab_size).to(inner.device)
    # The question is one of layout: rounding to bf16 would hide a leak, or look like one. Some kernels know
    # nothing but lower precision.
    kernel_rounds = needs_low_precision(inner)
    exact = nullcontext() if kernel_rounds else torch.autocast(inner.device.type, enabled=False)
    tolerance = _LOW_PRECISION if kernel_rounds else _TOLERANCE.get(inner.dtype, _LOW_PRECISION)
    with evaluating(model), torch.no_grad(), exact, full_precision():
        if _difference(model, batch, tolerance) is None:
            return None
        # A block may have changed since its fast form was written.
        trunk.disable(inner)
        return _difference(model, batch, tolerance)


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside the block, products of float32 are made in float32, whatever the user allows (TF32, bf16)."""
    # torch's stubs do not know the second.
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            # What is inherited from torch.backends.fp32_precision stays so, and is not written down here.
            backend.fp32_precision = "none"
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


def probe(vocabulary: int) -> Forest:
    """Three trees, among them one without a prompt and one with three branches."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(0, vocabulary, (length,), generator=generator).tolist()

    prompts = [ids(5), [], ids(1)]
    return Forest.from_lists(prompts, [[ids(4), ids(1), ids(6)], [ids(7)], [ids(3), ids(5)]])


def _difference(model: nn.Module, batch: Forest, tolerance: float) -> str | None:
    layout = flat_layout(batch)
    inner = padded.base_model(model)
    name = type(inner).__name__
    only_states = hasattr(inner, "score") or _is_trunk(inner)
    try:
        if only_states:
            ours = flat.hidden_states(model, layout, layout.last)
        else:
            ours = flat.score(model, batch, layout).logps
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if not _about_the_model(error):
            raise
        return f"{name} refuses a flat row ({error})"
    theirs = padded.last_states(model, batch) if only_states else padded.score(model, batch).logps
    largest = (ours - theirs).abs().max().item()
    if largest <= tolerance:
        return None
    return f"in {name} a document's scores depend on its neighbours in the row (by {largest:.1e})"


def _about_the_model(error: Exception) -> bool:
    # A device that is full or broken says nothing about the layout; padded rows would need it just as much.
    return not isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) and (
        "can't allocate memory" not in str(error)
    )


def _is_trunk(inner: Any) -> bool:
    # The model of a critic: hidden states, and no head of transformers' on them.
    return inner.base_model is inner and inner.get_output_embeddings() is None
