"""Samples as JSON lines in the run's directory."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_align.callbacks.sample_table import Sample


class SampleFile:
    """One JSON object per sample: ``step``, ``epoch``, and the fields of :class:`Sample`.

    A run that goes on continues its file, from the step it goes on from; a new run leaves an older file of
    that name alone, and takes a name with a number.

    Args:
        output: name in the run's directory, or a path elsewhere.
    """

    def __init__(self, output: str) -> None:
        self.output = Path(output).expanduser()
        #: What it is called in its directory, once it is open.
        self.name: str | None = None
        self.path: Path | None = None

    def open(self, trainer: Any, resumed: bool) -> None:
        """Find the place; on process zero, make room in it. Collective."""
        root = Path(trainer.log_dir or trainer.default_root_dir)
        wanted = root / self.output
        if not trainer.is_global_zero:
            return
        wanted.parent.mkdir(parents=True, exist_ok=True)
        if resumed and self.name is not None:
            self.path = wanted.with_name(self.name)
            self._forget_after(trainer.global_step)
        else:
            self.path, number = wanted, 0
            while self.path.exists():
                number += 1
                self.path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        self.name = self.path.name

    def write(self, step: int, epoch: int, samples: Sequence[Sample]) -> None:
        """Append a look at the model."""
        assert self.path is not None
        lines = [{"step": step, "epoch": epoch, **sample._asdict()} for sample in samples]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def _forget_after(self, step: int) -> None:
        # The run was cut off later than its checkpoint was written, and will take these steps again.
        assert self.path is not None
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            # A line that was being written when the run was cut off has no end.
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.path)
