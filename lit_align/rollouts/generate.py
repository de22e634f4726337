"""Text from a model: batches of prompts in, completions out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_align.runtime.chat_template import apply_template
from lit_align.runtime.seeds import derive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A prompt: text, or the turns of a conversation.
Prompt = str | Sequence[Mapping[str, Any]]


def generate_text(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 16,
    seed: int = 0,
) -> list[str]:
    """Continue each prompt.

    The modes of the modules (train or eval) and the global random state are as before afterwards. A
    completion depends on the weights, its prompt, ``seed`` and its place among the prompts: not on
    ``batch_size``.

    Args:
        model: a language model of transformers, or of peft around one, which is asked through its own
            ``generate``; or a `Policy`, which is asked through `NativeGenerator`, several times as fast.
        tokenizer: its tokenizer. A chat prompt goes through its template.
        prompts: texts, which are continued as they stand, or conversations (lists of
            ``{"role": ..., "content": ...}``), which get the assistant's next turn.
        max_new_tokens: longest completion, in tokens.
        temperature: of the distribution sampled from; 0 takes the most probable token each time.
        top_p: sample from the smallest set of tokens that has this much probability.
        top_k: sample from this many most probable tokens; 0 means from all.
        batch_size: completions written at once.
        seed: of the sampling.

    Returns:
        One completion per prompt, in their order, without special tokens.

    Raises:
        ValueError: an argument is out of its range, or a prompt is empty.
    """
    # They use what stands below.
    from lit_align.rollouts.native import NativeGenerator
    from lit_align.rollouts.sampling import Sampling
    from lit_align.rollouts.transformers_generator import TransformersGenerator
    from lit_align.scoring.policy import Policy

    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    ours = isinstance(model, Policy)
    generator = NativeGenerator(batch_size) if ours else TransformersGenerator(batch_size)
    forest = generator.generate(
        # A padded policy leaves the blocks of the model as they are.
        model if ours else Policy(model, layout="padded"),
        tokenizer,
        [encode_prompt(tokenizer, prompt, index) for index, prompt in enumerate(prompts)],
        completions=1,
        sampling=Sampling(max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p),
        seeds=[derive(seed, "text", index) for index in range(len(prompts))],
    )
    ids = [completion for _, completion, _ in forest.sequences()]
    return list(tokenizer.batch_decode(ids, skip_special_tokens=True)) if ids else []


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, index: int = 0) -> list[int]:
    """Token ids of a prompt; a conversation through the chat template, up to the assistant's turn.

    Raises:
        ValueError: the prompt is empty, or a conversation meets a tokenizer without a template.
    """
    if isinstance(prompt, str):
        # As the tokenizer would encode a document, but without the end that some append to one.
        ids = list(tokenizer(prompt)["input_ids"])
        if ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(str(tokenizer.eos_token)):
            ids.pop()
    else:
        if not tokenizer.chat_template:
            raise ValueError(
                f"prompt {index} is a conversation, but the tokenizer has no chat template; give text"
            )
        text = apply_template(tokenizer, prompt, f"prompt {index}", add_generation_prompt=True)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError(f"prompt {index} is empty: there is nothing to continue")
    return ids


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[B, longest]``, padded on the left: every prompt ends where generation begins."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(list(row), dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def sampling_arguments(
    tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int, temperature: float, top_p: float, top_k: int
) -> dict[str, Any]:
    """The arguments of transformers' ``generate`` that say how to sample, each of them explicit.

    A model's own ``generation_config`` may hold others (top_k 50, a repetition penalty), which would
    silently change the distribution.
    """
    common: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "pad_token_id": _pad_id(tokenizer),
        "repetition_penalty": 1.0,
        "num_beams": 1,
        # Gradient checkpointing switches the cache off in the configuration; in evaluation mode it is sound.
        "use_cache": True,
    }
    if temperature == 0:
        return {**common, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {**common, "do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}


@contextmanager
def generation_mode(*models: nn.Module | None) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in.

    In training mode under gradient checkpointing transformers drops the cache's positions and generates
    wrong tokens, with no more than a notice.
    """
    present = [model for model in models if model is not None]
    training = [module for model in present for module in model.modules() if module.training]
    for model in present:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # One by one: part of a model in training mode (adapters, a head) may be in evaluation mode.
        for module in training:
            module.training = True


def _pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0  # masked out on the left, and never reached on the right where nothing ends a text
