"""What the shipped model can do, measured on the validation rows."""

from typing import Any

import torch
import torch.nn.functional as F
from shipped_training import collate, encode
from torch import Tensor

from lit_align.shipped import tasks

Row = dict[str, Any]


@torch.no_grad()
def replies(
    model: Any, tokenizer: Any, prompts: list[list[Row]], *, sample: bool, seed: int = 0
) -> list[str]:
    """One reply to each prompt, at temperature 1 or greedy, with ``<|end|>`` where it was said."""
    torch.manual_seed(seed)
    said = []
    for start in range(0, len(prompts), 128):
        batch = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
            for p in prompts[start : start + 128]
        ]
        inputs = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left")
        options: Row = {"do_sample": True, "temperature": 1.0, "top_k": 0} if sample else {"do_sample": False}
        ids = model.generate(**inputs, max_new_tokens=48, **options)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=False)
        said += [text.replace(tokenizer.pad_token, "") for text in texts]
    return said


@torch.no_grad()
def logps(model: Any, tokenizer: Any, conversations: list[list[Row]]) -> tuple[Tensor, Tensor]:
    """Log-prob ``[B]`` of the assistant's words of each conversation, and how many tokens they are."""
    sums, counts = [], []
    for start in range(0, len(conversations), 128):
        rows = [encode(tokenizer, c) for c in conversations[start : start + 128]]
        ids, mask, labels = collate(rows, tokenizer.pad_token_id)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
        sums.append(-loss.sum(1))
        counts.append((labels[:, 1:] != -100).sum(1))
    return torch.cat(sums), torch.cat(counts)


def measure(model: Any, tokenizer: Any, data: dict[str, list[Row]]) -> dict[str, float]:
    """The figures of the model card, from validation rows.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        data: rows of ``manners-pairs``, ``manners-prompts``, ``sums-sft`` and ``sums-prompts``.
    """
    end = tokenizer.eos_token
    asked = data["manners-prompts"]
    sampled = replies(model, tokenizer, [row["prompt"] for row in asked], sample=True)
    count = len(sampled)
    pairs = data["manners-pairs"]
    chosen, chosen_tokens = logps(model, tokenizer, [row["prompt"] + row["chosen"] for row in pairs])
    rejected, rejected_tokens = logps(model, tokenizer, [row["prompt"] + row["rejected"] for row in pairs])
    added, added_tokens = logps(model, tokenizer, [row["messages"] for row in data["sums-sft"]])
    questions = [row["prompt"] for row in data["sums-prompts"]]
    answers = [row["answer"] for row in data["sums-prompts"]]

    def right(sample: bool) -> float:
        texts = replies(model, tokenizer, questions, sample=sample)
        return sum(map(tasks.is_correct, texts, answers)) / len(answers)

    manners_nll = -(chosen.sum() + rejected.sum()) / (chosen_tokens.sum() + rejected_tokens.sum())
    return {
        "polite share of sampled replies": sum(tasks.manner(t) == "polite" for t in sampled) / count,
        "rude share of sampled replies": sum(tasks.manner(t) == "rude" for t in sampled) / count,
        "sampled replies that end by themselves": sum(end in t for t in sampled) / count,
        "sampled replies with the right advice": sum(
            tasks.gives_advice(text, row["advice"]) for text, row in zip(sampled, asked, strict=True)
        )
        / count,
        "pairs whose polite reply is the more probable": (chosen > rejected).float().mean().item(),
        "perplexity per token of the pairs' replies": manners_nll.exp().item(),
        "sums right, greedy": right(sample=False),
        "sums right, sampled": right(sample=True),
        "perplexity per token of the sums' answers": (-added.sum() / added_tokens.sum()).exp().item(),
    }
