"""How often the policy's completions are preferred to those of its start, of a reference, or given ones."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L

from lit_align.callbacks.completions import Completer
from lit_align.callbacks.judges import Judge
from lit_align.callbacks.model_lookup import find_model, find_tokenizer, is_adapted
from lit_align.callbacks.prompts import read_rows
from lit_align.callbacks.reporting import log_now
from lit_align.callbacks.schedule import Schedule
from lit_align.callbacks.sharding import refuse_spread
from lit_align.callbacks.sharing import gather, my_chunks
from lit_align.rollouts.generate import generate_text
from lit_align.runtime.agreement import together
from lit_align.runtime.data_place import data_place
from lit_align.scoring.adapters import adapter_off


class WinRate(L.Callback):
    """Let a judge compare what the policy writes to fixed prompts with what something else wrote.

    Works with any module that holds a generating model of transformers. Logs, as ``val/win_rate`` (or
    ``train/win_rate`` by steps), the mean verdict, a tie counting half; ``.../low`` and ``.../high``, its
    95 % interval (Wilson 1927) as if each prompt were one trial; and ``.../judged``, the share of prompts
    with a verdict. Training is the same with this callback and without.

    Args:
        prompts: texts or conversations, or mappings with ``prompt`` and ``completion``, or a file of them,
            see :func:`lit_align.callbacks.prompts.read_rows`. Where there are completions, they are what the
            policy is compared with.
        judge: a function of prompts, first and second completions that says how much the first one wins, see
            :class:`lit_align.callbacks.judges.Judge`; a
            :class:`~lit_align.callbacks.judges.RewardJudge`, or an
            :class:`~lit_align.callbacks.endpoint_judge.EndpointJudge`.
        against: what to compare with where prompts have no completions: ``start``, the policy before
            training; ``adapter_off``, the base under LoRA; or a directory, shipped name or name on the Hub.
        every_n_steps: optimiser steps between two comparisons; by default at validation.
        both_orders: ask about each pair twice, the second time with the two exchanged, because judges favour
            a place; a judge that says it is ``symmetric`` is asked once.
        max_new_tokens: longest completion.
        temperature: of both; 0 is greedy.
        batch_size: prompts at once.
        name: of the metric; two of these callbacks need two.
        model: attribute that holds the model, see :func:`lit_align.callbacks.model_lookup.find_model`.
        tokenizer: attribute that holds the tokenizer.
    """

    def __init__(
        self,
        prompts: list[Any] | str,
        judge: Judge | Callable[..., Any],
        against: str = "start",
        every_n_steps: int | None = None,
        both_orders: bool = True,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        batch_size: int = 8,
        name: str = "win_rate",
        model: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        rows = read_rows(prompts, "WinRate")
        self._prompts = [row.prompt for row in rows]
        self._given = [str(row.completion) for row in rows] if rows[0].completion is not None else None
        self._schedule = Schedule(every_n_steps, "WinRate")
        self.judge, self.against = judge, against
        self.both_orders = both_orders and not getattr(judge, "symmetric", False)
        self.max_new_tokens, self.temperature, self.batch_size = max_new_tokens, temperature, batch_size
        self.name = name
        self._model_name, self._tokenizer_name = model, tokenizer
        self._model: Any = None
        self._completer: Completer | None = None
        #: Completions of the other side, by the number of the prompt.
        self._other: dict[int, str] = dict(enumerate(self._given or []))

    @property
    def state_key(self) -> str:
        """Of its own for each name, so that a trainer can have several."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a strategy without whole weights."""
        refuse_spread(trainer, "WinRate")
        self._completer = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the other side's completions, unless the run goes on and has them; try the judge."""
        self._schedule.start(trainer)
        self._prepare(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare where it is time."""
        if self._schedule.is_due(trainer):
            found = self._compare(trainer, pl_module)
            log_now(trainer, {f"train/{name}": value for name, value in found.items()})

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare where validation is the time."""
        by_steps = self._schedule.every_n_steps is not None and trainer.state.fn == "fit"
        if trainer.sanity_checking or by_steps:
            return
        self._prepare(trainer, pl_module)
        found = self._compare(trainer, pl_module)
        # Equal on all processes already; sync_dist only tells Lightning so.
        pl_module.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """The other side's completions."""
        return {"other": list(self._other.items())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with what the run that goes on was compared with."""
        self._other = dict(state_dict["other"])

    # -- the two sides -----------------------------------------------------------------------------

    def _prepare(self, trainer: Any, pl_module: Any) -> None:
        if self._completer is not None:
            return
        self._model = find_model(pl_module, self._model_name)
        tokenizer = find_tokenizer(pl_module, self._tokenizer_name, trainer.datamodule)
        self._completer = Completer(pl_module, self._model, tokenizer, self.batch_size)
        with together("it tried the judge"):
            self._try_judge(trainer, pl_module, tokenizer)
        if self._other and len(self._other) != len(self._prompts):
            raise ValueError(
                f"WinRate: the checkpoint has completions of {len(self._other)} prompts, and there are "
                f"{len(self._prompts)} now; give the same prompts, or another name="
            )
        if not self._other:
            self._other = dict(gather(trainer, self._others(trainer)))

    def _try_judge(self, trainer: Any, pl_module: Any, tokenizer: Any) -> None:
        judge: Any = self.judge
        if hasattr(judge, "attach"):
            judge.attach(pl_module, tokenizer)
        if hasattr(judge, "check") and trainer.is_global_zero:
            judge.check()

    def _others(self, trainer: Any) -> list[tuple[int, str]]:
        if self.against == "start":
            return self._written(trainer)
        if self.against == "adapter_off":
            if not is_adapted(self._model):
                raise ValueError("WinRate: the model has no adapters to switch off; use start or a path")
            with adapter_off(self._model):
                return self._written(trainer)
        from lit_align.models.build import build_causal_lm
        from lit_align.models.tokenizers import load_tokenizer

        other = build_causal_lm(self.against).to(trainer.strategy.root_device).eval()
        # Its own, since only texts are compared.
        own = load_tokenizer(self.against)
        return self._chunked(
            trainer,
            lambda rows: generate_text(
                other,
                own,
                [self._prompts[i] for i in rows],
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                batch_size=self.batch_size,
                seed=rows.start,
            ),
        )

    def _written(self, trainer: Any) -> list[tuple[int, str]]:
        """What the policy writes now."""
        assert self._completer is not None
        completer = self._completer
        return self._chunked(
            trainer,
            lambda rows: completer.texts(
                [self._prompts[i] for i in rows], rows, self.max_new_tokens, self.temperature
            ),
        )

    def _chunked(self, trainer: Any, write: Callable[[range], list[str]]) -> list[tuple[int, str]]:
        mine: list[tuple[int, str]] = []
        place = data_place(trainer)
        # Hooks run outside of the precision that steps run in.
        with trainer.precision_plugin.forward_context():
            for rows, counts in my_chunks(len(self._prompts), self.batch_size, place.rank, place.size):
                texts = write(rows)
                mine += zip(rows, texts, strict=True) if counts else []
        return mine

    # -- the verdict -------------------------------------------------------------------------------

    def _compare(self, trainer: Any, pl_module: Any) -> dict[str, float]:
        mine = self._written(trainer)
        with together("it judged completions"):
            judged_here = self._verdicts(mine)
        verdicts = [v for _, v in sorted(gather(trainer, judged_here))]
        judged = [v for v in verdicts if v is not None and math.isfinite(v)]
        found = {f"{self.name}/judged": len(judged) / len(verdicts)}
        if judged:
            rate = sum(judged) / len(judged)
            low, high = wilson(rate, len(judged))
            found |= {self.name: rate, f"{self.name}/low": low, f"{self.name}/high": high}
        return found

    def _verdicts(self, mine: list[tuple[int, str]]) -> list[tuple[int, float | None]]:
        if not mine:
            return []
        prompts = [self._prompts[i] for i, _ in mine]
        sides = ([text for _, text in mine], [self._other[i] for i, _ in mine])
        verdicts = self._asked(prompts, *sides)
        if self.both_orders:
            exchanged = self._asked(prompts, *reversed(sides))
            pairs = zip(verdicts, exchanged, strict=True)
            verdicts = [None if a is None or b is None else (a + 1 - b) / 2 for a, b in pairs]
        return [(i, verdict) for (i, _), verdict in zip(mine, verdicts, strict=True)]

    def _asked(self, prompts: list[Any], firsts: list[str], seconds: list[str]) -> list[float | None]:
        found = list(self.judge(prompts, firsts, seconds))
        verdicts = [None if v is None or math.isnan(v) else float(v) for v in found]
        if len(verdicts) != len(prompts) or any(v is not None and not 0 <= v <= 1 for v in verdicts):
            raise ValueError(
                f"WinRate: the judge gave {found} for {len(prompts)} pairs; it must give each a number "
                "between 0 (the second wins) and 1 (the first wins), or None"
            )
        return verdicts


def wilson(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds a probability with 95 % confidence (Wilson 1927), for small counts too.

    Args:
        rate: share of wins.
        count: trials.
        z: quantile of the normal distribution.

    >>> tuple(round(x, 3) for x in wilson(0.5, 10))
    (0.237, 0.763)
    """
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return centre - half, centre + half
