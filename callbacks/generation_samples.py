"""What the model writes, before and while it trains."""

from typing import Any

import lightning as L

from lit_align.callbacks.completions import Completer
from lit_align.callbacks.model_lookup import find_model, find_tokenizer
from lit_align.callbacks.prompts import read_rows
from lit_align.callbacks.reporting import log_table
from lit_align.callbacks.sample_file import SampleFile
from lit_align.callbacks.sample_table import COLUMNS, Sample, render, table
from lit_align.callbacks.schedule import Schedule
from lit_align.callbacks.sharding import refuse_spread
from lit_align.callbacks.sharing import gather, my_chunks
from lit_align.rollouts.generator import Generator
from lit_align.runtime.data_place import data_place


class GenerationSamples(L.Callback):
    """Show what the model writes to fixed prompts, before training beside now.

    Works with any module that holds a generating model of transformers. The samples go to the terminal as a
    table, to the loggers that know tables or texts (TensorBoard, W&B, MLflow), and, one JSON object per
    prompt and way of decoding, to ``samples.jsonl`` in the run's directory. Training is the same, bit for
    bit, with this callback and without.

    Args:
        prompts: texts, or conversations as lists of turns, or a file of them, see
            :func:`lit_align.callbacks.prompts.read_rows`.
        every_n_steps: optimiser steps between two looks; by default at validation. The last step always
            gets one.
        max_new_tokens: longest completion.
        temperature: of the sampled completions, which stand beside the greedy ones; 0 leaves them out.
        batch_size: prompts at once.
        output: name of the file in the run's directory, or a path elsewhere.
        terminal: print the table.
        name: in the loggers; two of these callbacks need two.
        model: attribute that holds the model, see :func:`lit_align.callbacks.model_lookup.find_model`.
        tokenizer: attribute that holds the tokenizer.
        generator: writes the completions; by default this package's own for its policies, and the model's
            ``generate`` for others, see :class:`lit_align.callbacks.completions.Completer`.
    """

    def __init__(
        self,
        prompts: list[Any] | str,
        every_n_steps: int | None = None,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        batch_size: int = 8,
        output: str = "samples.jsonl",
        terminal: bool = True,
        name: str = "samples",
        model: str | None = None,
        tokenizer: str | None = None,
        generator: Generator | None = None,
    ) -> None:
        self._prompts = [row.prompt for row in read_rows(prompts, "GenerationSamples")]
        self._schedule = Schedule(every_n_steps, "GenerationSamples")
        self.max_new_tokens, self.temperature, self.batch_size = max_new_tokens, temperature, batch_size
        self.terminal, self.name = terminal, name
        self._model_name, self._tokenizer_name = model, tokenizer
        self._generator = generator
        self._completer: Completer | None = None
        self._file = SampleFile(output)
        self._before: dict[tuple[int, str], str] = {}
        self._last = -1
        self._resumed = False
        self._epoch = 0

    @property
    def state_key(self) -> str:
        """Of its own for each name, so that a trainer can have several."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a strategy without whole weights."""
        refuse_spread(trainer, "GenerationSamples")
        self._completer = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the completions before training, unless the run goes on and has them."""
        self._schedule.start(trainer)
        self._file.open(trainer, self._resumed)
        if not self._resumed:
            self._before = {}
            self._before = {(s.row, s.mode): s.completion for s in self._generate(trainer, pl_module)}
        self._resumed, self._last = False, trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look where it is time."""
        # By the time training has ended, Lightning counts an epoch more.
        self._epoch = trainer.current_epoch
        if self._schedule.is_due(trainer):
            self._look(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look where validation is the time."""
        fitting = trainer.state.fn == "fit"
        if trainer.sanity_checking or (fitting and self._schedule.every_n_steps is not None):
            return
        if not fitting:
            self._file.open(trainer, resumed=False)
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the end, unless the last look was at the same weights."""
        if self._last != trainer.global_step:
            self._look(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The completions before training, and the file."""
        before = [[row, mode, text] for (row, mode), text in self._before.items()]
        return {"before": before, "file": self._file.name}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the completions before the training that goes on."""
        self._before = {(row, mode): text for row, mode, text in state_dict["before"]}
        self._file.name, self._resumed = state_dict["file"], True

    # -- a look ----------------------------------------------------------------------------------

    def _look(self, trainer: Any, pl_module: Any) -> None:
        self._last = trainer.global_step
        samples = self._generate(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        self._file.write(trainer.global_step, self._epoch, samples)
        rows = table(samples)
        log_table(trainer, self.name, COLUMNS, rows)
        if self.terminal:
            title = f"{self.name} at step {trainer.global_step}"
            # Through the progress bar, where there is one, so that the two do not write over each other.
            pl_module.print(render(title, rows))

    def _generate(self, trainer: Any, pl_module: Any) -> list[Sample]:
        if self._completer is None:
            model = find_model(pl_module, self._model_name)
            tokenizer = find_tokenizer(pl_module, self._tokenizer_name, trainer.datamodule)
            self._completer = Completer(pl_module, model, tokenizer, self.batch_size, self._generator)
        # Hooks run outside of the precision that steps run in.
        with trainer.precision_plugin.forward_context():
            place = data_place(trainer)
            mine = self._share(place.rank, place.size)
        return sorted(gather(trainer, mine))

    def _share(self, rank: int, world: int) -> list[Sample]:
        mine: list[Sample] = []
        for rows, counts in my_chunks(len(self._prompts), self.batch_size, rank, world):
            found = [sample for mode in self._modes() for sample in self._complete(rows, mode)]
            mine += found if counts else []
        return mine

    def _modes(self) -> tuple[str, ...]:
        return ("greedy", "sampled") if self.temperature else ("greedy",)

    def _complete(self, rows: range, mode: str) -> list[Sample]:
        assert self._completer is not None
        texts = self._completer.texts(
            [self._prompts[i] for i in rows],
            # The same at every look, so that a change of the text is a change of the model.
            rows,
            self.max_new_tokens,
            self.temperature if mode == "sampled" else 0.0,
        )
        return [
            Sample(i, mode, _shown(self._prompts[i]), self._before.get((i, mode)), text)
            for i, text in zip(rows, texts, strict=True)
        ]


def _shown(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)
