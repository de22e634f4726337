"""When a callback that looks at the model does so: every so many optimiser steps, or at validation."""

from typing import Any


class Schedule:
    """Every ``every_n_steps`` optimiser steps, once each; or never by steps where it is ``None``.

    Args:
        every_n_steps: optimiser steps between two looks.
        owner: the callback's name, for the error.
    """

    def __init__(self, every_n_steps: int | None, owner: str) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"{owner}: every_n_steps is {every_n_steps}; it must be at least 1, or null for at validation"
            )
        self.every_n_steps = every_n_steps
        self._last = 0

    def start(self, trainer: Any) -> None:
        """Nothing is due at the step that training goes on from."""
        self._last = trainer.global_step

    def is_due(self, trainer: Any) -> bool:
        """Whether this is the first batch end after a step that is due; micro-batches do not count."""
        if self.every_n_steps is None or trainer.global_step == self._last:
            return False
        # Several optimisers raise global_step by more than one at once.
        due = trainer.global_step // self.every_n_steps > self._last // self.every_n_steps
        self._last = trainer.global_step
        return due
