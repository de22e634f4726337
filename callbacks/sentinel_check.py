"""What a check of a run sees, and what it is.

A check sees one `Seen` at a time and answers with a message or with nothing. A message says what was found,
and what to look at. ``source`` says where the threshold comes from.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Seen:
    """What one look at a run finds; ``None`` where this look has no such number.

    Attributes:
        loss: of the last micro-batch.
        learned: tokens of the last micro-batch that weigh something in the loss.
        metrics: of training, by their names without the stage; empty where none was logged since.
        grad_norm: over all trained weights, before clipping.
        texts: token ids of completions of fixed prompts.
        held_out: the reward that is trained on and one that is not, where both are new.
    """

    loss: float | None = None
    learned: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    grad_norm: float | None = None
    texts: Sequence[Sequence[int]] | None = None
    held_out: tuple[float, float] | None = None


class Check(ABC):
    """One thing to look out for. What it remembers is a list of numbers."""

    name: str
    source: str

    def __init__(self) -> None:
        self.memory: list[float] = []

    @abstractmethod
    def look(self, seen: Seen) -> str | None:
        """A message where something is wrong."""

    def _in_a_row(self, wrong: bool, times: int) -> bool:
        self.memory = [*self.memory, 1.0] if wrong else []
        return len(self.memory) >= times
