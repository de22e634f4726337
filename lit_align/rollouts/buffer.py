"""The buffer between rollouts and training steps: one rollout, in minibatches, gone through once or more."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from lit_align.batches import Forest
from lit_align.runtime.seeds import derive

#: Minibatches of one rollout, in the order of the training steps: each a tuple of prompts.
Plan = tuple[tuple[int, ...], ...]


def minibatch_plan(prompts: int, *, epochs: int, minibatches: int, seed: int) -> Plan:
    """Which prompts make which minibatch: each pass over the rollout is a permutation of its own.

    Groups stay whole. Where the prompts do not divide, the first minibatches have one more.

    Args:
        prompts: ``P`` of the rollout.
        epochs: passes over it.
        minibatches: of each pass.
        seed: of the permutations; the same gives the same.

    Raises:
        ValueError: there are fewer prompts than minibatches.

    >>> [len(part) for part in minibatch_plan(5, epochs=2, minibatches=2, seed=0)]
    [3, 2, 3, 2]
    """
    if prompts < minibatches:
        raise ValueError(
            f"a rollout of {prompts} prompts cannot be cut into {minibatches} minibatches: "
            "give the data module a larger batch_size, or take a smaller num_minibatches"
        )
    plan: list[tuple[int, ...]] = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive(seed, "minibatches", epoch))
        # One minibatch of everything needs no order, and keeps the one that the rollout has.
        order = torch.randperm(prompts, generator=generator) if minibatches > 1 else torch.arange(prompts)
        plan += [tuple(part.tolist()) for part in order.tensor_split(minibatches)]
    return tuple(plan)


class RolloutBuffer:
    """A rollout and how much of it has been trained on.

    Attributes:
        experience: the rollout with its advantages, ``None`` before the first.
        plan: its minibatches.
        taken: how many of them have been handed out.
        source: rows of the prompts that the rollout was asked for.
        stopped: whether the rest is to be passed over, because the policy has moved far enough.
        updates: optimiser steps since the rollout.
    """

    experience: Forest | None
    plan: Plan
    taken: int
    source: tuple[int, ...]
    stopped: bool
    updates: int

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the rollout."""
        self.experience, self.plan, self.source = None, (), ()
        self.taken = self.updates = 0
        self.stopped = False

    @property
    def empty(self) -> bool:
        """Whether a rollout is due."""
        return self.taken >= len(self.plan)

    def fill(self, experience: Forest, plan: Plan, source: Sequence[int]) -> None:
        """Put a new rollout in."""
        self.clear()
        self.experience, self.plan, self.source = experience, plan, tuple(source)

    def take(self) -> Forest:
        """The next minibatch."""
        if self.experience is None or self.empty:
            raise RuntimeError("the rollout buffer is empty")
        prompts = self.plan[self.taken]
        self.taken += 1
        if len(prompts) == self.experience.num_prompts and prompts == tuple(range(len(prompts))):
            return self.experience
        return self.experience.select(prompts)

    def state_dict(self, give_back: int = 0) -> dict[str, Any]:
        """Plain data and tensors on the host, for a checkpoint.

        Args:
            give_back: minibatches handed out whose gradients are in no weight yet: they come again.
        """
        taken = self.taken - give_back
        if self.experience is None or taken >= len(self.plan):
            return {}
        return {
            "experience": plain_forest(self.experience),
            "plan": [list(part) for part in self.plan],
            "taken": taken,
            "source": list(self.source),
            "stopped": self.stopped,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up where a checkpoint left; an empty state empties the buffer."""
        self.clear()
        if not state:
            return
        self.experience = forest_of(state["experience"]).to(device)
        self.plan = tuple(tuple(part) for part in state["plan"])
        self.taken, self.source = state["taken"], tuple(state["source"])
        self.stopped, self.updates = state["stopped"], state["updates"]


def plain_forest(forest: Forest) -> dict[str, Any]:
    """A forest as tensors on the host and plain data; without records, which only reward functions read."""
    forest = replace(forest.to("cpu"), records=())
    return {item.name: getattr(forest, item.name) for item in fields(forest) if item.name != "records"}


def forest_of(state: Mapping[str, Any]) -> Forest:
    """The forest of :func:`plain_forest`."""
    return Forest(**state)


def merge_states(states: Sequence[Mapping[str, Any]], world_size: int) -> list[dict[str, Any]]:
    """Buffers of some processes as those of another number of processes.

    Minibatch ``k`` of all processes together stays minibatch ``k`` of all processes together, so that every
    optimiser step sees the same experience.

    Args:
        states: one per process, of :meth:`RolloutBuffer.state_dict`.
        world_size: number of processes to share them out to.

    Raises:
        ValueError: a minibatch has fewer prompts than there are processes.
    """
    if len(states) == world_size or not any(states):
        return [dict(state) for state in states] if len(states) == world_size else [{}] * world_size
    forests = [forest_of(state["experience"]) for state in states]
    starts = [sum(f.num_prompts for f in forests[:i]) for i in range(len(forests))]
    whole = concatenate(forests)
    plans: list[list[list[int]]] = [[] for _ in range(world_size)]
    for parts in zip(*(state["plan"] for state in states), strict=True):
        together = [start + p for start, part in zip(starts, parts, strict=True) for p in part]
        if len(together) < world_size:
            raise ValueError(
                f"the checkpoint holds a half-used rollout whose minibatches have {len(together)} prompts, "
                f"too few for {world_size} processes; go on with as many processes as before"
            )
        for rank, share in enumerate(torch.tensor(together).tensor_split(world_size)):
            plans[rank].append(share.tolist())
    sources = [row for state in states for row in state["source"]]
    shares = [part.tolist() for part in torch.tensor(sources).tensor_split(world_size)]
    found = []
    for plan, source in zip(plans, shares, strict=True):
        # Each process keeps the prompts that it will need, numbered anew.
        needed = sorted({p for part in plan for p in part})
        place = {p: i for i, p in enumerate(needed)}
        found.append(
            {
                **states[0],
                "experience": plain_forest(whole.select(needed)),
                "plan": [[place[p] for p in part] for part in plan],
                "source": source,
            }
        )
    return found


def concatenate(forests: Sequence[Forest]) -> Forest:
    """Several forests as one, their columns included; prompts keep their order.

    Raises:
        ValueError: their columns differ.
    """
    first = forests[0]
    for name in ("prompt_columns", "completion_columns", "token_columns"):
        if any(getattr(f, name).keys() != getattr(first, name).keys() for f in forests):
            raise ValueError(f"these forests have different {name.replace('_', ' ')}")
    starts = [sum(f.num_prompts for f in forests[:i]) for i in range(len(forests))]
    columns = {
        name: {k: torch.cat([getattr(f, name)[k] for f in forests]) for k in getattr(first, name)}
        for name in ("prompt_columns", "completion_columns", "token_columns")
    }
    return Forest(
        prompt_ids=torch.cat([f.prompt_ids for f in forests]),
        prompt_lengths=tuple(n for f in forests for n in f.prompt_lengths),
        completion_ids=torch.cat([f.completion_ids for f in forests]),
        completion_lengths=tuple(n for f in forests for n in f.completion_lengths),
        parents=tuple(start + p for start, f in zip(starts, forests, strict=True) for p in f.parents),
        weights=torch.cat([f.weights for f in forests]),
        rows=tuple(row for f in forests for row in f.rows),
        records=tuple(r for f in forests for r in f.records) if all(f.records for f in forests) else (),
        **columns,
    )
