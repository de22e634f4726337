"""On-policy rounds by hand: ask the policy, judge its answers yourself, let it learn from them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_align.algorithms.collection import generate, judge
from lit_align.algorithms.metrics import average
from lit_align.algorithms.optim import build_optimizer
from lit_align.batches import Forest
from lit_align.rollouts.generate import Prompt, encode_prompt, generation_mode
from lit_align.rollouts.reward_set import RewardResult

if TYPE_CHECKING:
    from lit_align.algorithms.on_policy import OnPolicy
    from lit_align.algorithms.sampling_module import SamplingModule

#: A completion: its text, or its token ids.
Completion = str | Sequence[int]


@dataclass(frozen=True)
class Responses:
    """What a policy answered, one entry per completion, those of a prompt side by side.

    Attributes:
        texts: without special tokens.
        ids: token ids, the stop token included.
        logps: log-probs of these tokens at the sampling temperature.
        values: what the critic expected when they were chosen; ``None`` without a value head on the policy.
        finished: whether it came to its end, or was cut off.
        prompts: which prompt was answered.
    """

    texts: list[str]
    ids: list[list[int]]
    logps: list[Tensor]
    values: list[Tensor] | None
    finished: list[bool]
    prompts: list[int]


def respond(module: "SamplingModule", prompts: Sequence[Prompt], *, seed: int, completions: int) -> Responses:
    """Answers to prompts, texts or conversations; see :meth:`SamplingModule.respond`."""
    module.configure_model()
    ids = [encode_prompt(module.tokenizer, prompt, i) for i, prompt in enumerate(prompts)]
    batch = Forest.from_lists(ids, [[] for _ in ids]).to(module.device)
    module.hand_over()
    forest = generate(module, batch, f"respond {seed}", completions)
    lengths = list(forest.completion_lengths)
    values = forest.token_columns.get("values")
    tokens = [completion for _, completion, _ in forest.sequences()]
    return Responses(
        texts=module.tokenizer.batch_decode(tokens, skip_special_tokens=True),
        ids=tokens,
        logps=list(forest.token_columns["old_logps"].cpu().split(lengths)),
        values=None if values is None else list(values.cpu().split(lengths)),
        finished=forest.completion_columns["finished"].tolist(),
        prompts=list(forest.parents),
    )


def optimise(
    module: "OnPolicy",
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    rewards: Sequence[float | None],
    *,
    max_norm: float | None,
) -> dict[str, float]:
    """One round on completions that were judged by the caller; see :meth:`OnPolicy.step`."""
    module.configure_model()
    forest = _forest(module, prompts, completions)
    with generation_mode(module):
        # The completions may come from anywhere: what the policy thinks of them is asked once.
        logps = module.policy(forest, temperature=module.temperature).logps
        forest = forest.with_token_column("old_logps", logps)
        experience, metrics = judge(module, forest, _given(rewards, forest))
    module.fill(experience, forest.rows)
    reports = [metrics]
    with _training_mode(module):
        while not module.buffer.empty:
            minibatch = module.buffer.take()
            if module.buffer.stopped:
                continue
            reports.append(_update(module, minibatch, max_norm))
    return average(reports, module.device)


@contextmanager
def _training_mode(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _update(module: "OnPolicy", minibatch: Forest, max_norm: float | None) -> dict[str, Any]:
    optimizer = module.own_optimizer()
    optimizer.zero_grad(set_to_none=True)
    output = module._run(minibatch, logging=True)
    module.observe(output)
    (output.total / output.weight.clamp_min(torch.finfo(torch.float32).tiny)).backward()
    module.before_update(optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(trained, max_norm)
    optimizer.step()
    module.after_update()
    module.own_steps += 1
    module.reference.after_step(module.policy, module.own_steps)
    return output.metrics


def optimizer_of(module: "OnPolicy") -> torch.optim.Optimizer:
    """A new optimiser over what the module trains, at its learning rate."""
    if module.optim.sparse_embedding:
        raise ValueError("sparse_embedding is for a trainer: leave it out of rounds by hand")
    return build_optimizer(module, module.optim, module.lr)


def _forest(module: "OnPolicy", prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Forest:
    """Prompts and completions as a forest: completions of the same neighbouring prompt are its group."""
    if len(prompts) != len(completions):
        raise ValueError(
            f"{len(prompts)} prompts and {len(completions)} completions: give a prompt for each completion "
            "(the same prompt again for each completion of a group)"
        )
    eos = module.tokenizer.eos_token_id
    ids: list[list[int]] = []
    groups: list[list[list[int]]] = []
    finished = []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        encoded = encode_prompt(module.tokenizer, prompt, i)
        if isinstance(completion, str):
            tokens = list(module.tokenizer(completion, add_special_tokens=False)["input_ids"])
            tokens += [] if eos is None else [eos]
        else:
            tokens = list(completion)
        if not tokens:
            raise ValueError(f"completion {i} is empty: there is nothing to learn from")
        if i and encoded == ids[-1]:
            groups[-1].append(tokens)
        else:
            ids.append(encoded)
            groups.append([tokens])
        finished.append(tokens[-1] == eos)
    forest = Forest.from_lists(ids, groups)
    return replace(forest, completion_columns={"finished": torch.tensor(finished)}).to(module.device)


def _given(rewards: Sequence[float | None], forest: Forest) -> RewardResult:
    if len(rewards) != forest.num_completions:
        raise ValueError(
            f"{len(rewards)} rewards for {forest.num_completions} completions: give one for each"
        )
    values = [float("nan") if reward is None else float(reward) for reward in rewards]
    table = torch.tensor(values, dtype=torch.float32, device=forest.device)[:, None]
    return RewardResult(table, table, torch.ones(1, device=forest.device), ("given",))
