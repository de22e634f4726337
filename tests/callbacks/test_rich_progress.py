"""A panel in a terminal, plain lines elsewhere, and the numbers in both."""

import io
import logging
import re
import sys
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from lit_align import DPO
from lit_align.callbacks import ProgressLines, RichProgress
from lit_align.callbacks.progress_numbers import Pace, last_sample, shown_metrics
from lit_align.callbacks.sample_table import printable
from lit_align.datamodules import PreferenceDataModule


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _ours() -> tuple[Any, Any]:
    pairs = "lit-align/manners-pairs"
    data = PreferenceDataModule(train=pairs, val=pairs, batch_size=2, eval_batch_size=2)
    return DPO({"path": "lit-align/tiny", "lora": {"r": 4}}), data


def _fit(make_trainer: Any, bar: Any, run: Any, **options: Any) -> Any:
    given = {"max_steps": 4, "limit_val_batches": 1, "val_check_interval": 2, "enable_progress_bar": True}
    trainer = make_trainer(bar, **(given | options))
    trainer.fit(*run)
    return trainer


def test_lines_without_a_terminal(make_trainer, capsys) -> None:
    _fit(make_trainer, RichProgress(seconds=0.0), _ours())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4", "4/4"]
    assert re.search(r"left  [\d,]+ tokens/s  loss 0\.\d+  rewards/chosen ", lines[2])
    assert "left" not in lines[-1]
    assert "\x1b" not in "".join(lines)


def test_few_lines_where_time_is_short(make_trainer, capsys, make_stranger, loader) -> None:
    _fit(make_trainer, RichProgress(seconds=1000.0), (make_stranger(), loader(), loader()))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 1
    assert re.match(r"step 4/4  \d+ s  [\d,]+ tokens/s  loss ", lines[0])


def test_a_panel_in_a_terminal(make_trainer, monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    # What loggers say goes through the panel, too.
    handler, logger = logging.StreamHandler(sys.stderr), logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    bar = RichProgress(redraws_per_second=1e9)
    module, data = _ours()
    # Which logger the trainer itself speaks through depends on what else has been imported.
    module.after_optimizer_step = lambda: logger.error("said while it trains")
    try:
        _fit(make_trainer, bar, (module, data))
    finally:
        logger.removeHandler(handler)
    assert handler.stream is sys.stderr
    assert "said while it trains" in terminal.getvalue()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    for part in (
        "training",
        "validating 1/1",
        "done",
        "step 3/4",
        "tokens/s",
        "rewards/margins",
        "last sample",
    ):
        assert part in shown, part
    # The cursor is given back.
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h")
    assert bar._live is None


def test_a_failure_gives_the_terminal_back(make_trainer, make_stranger, loader, monkeypatch) -> None:
    class Fails(L.Callback):
        def on_train_batch_end(self, *rest: Any) -> None:
            raise RuntimeError("no more")

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    trainer = make_trainer(RichProgress(), Fails(), max_steps=4, enable_progress_bar=True)
    with pytest.raises(RuntimeError, match="no more"):
        trainer.fit(make_stranger(), loader())
    assert "\x1b[?25h" in terminal.getvalue()


def test_what_the_module_prints_is_seen(make_trainer, make_stranger, loader, capsys) -> None:
    module = make_stranger()
    module.on_train_end = lambda: module.print("said by the module")
    _fit(make_trainer, RichProgress(), (module, loader(), loader()))
    assert "said by the module" in capsys.readouterr().out


def test_the_other_lightning(make_trainer, make_stranger, loader, capsys) -> None:
    """Its trainer does not know this bar for one: it works beside none, and refuses to share."""
    pl = pytest.importorskip("pytorch_lightning")
    trainer = make_trainer(RichProgress(seconds=0.0), package=pl, max_steps=2)
    trainer.fit(make_stranger(pl), loader())
    assert "step 2/2" in capsys.readouterr().out
    trainer = make_trainer(RichProgress(), package=pl, max_steps=2, enable_progress_bar=True)
    with pytest.raises(ValueError, match="give it enable_progress_bar=False"):
        trainer.fit(make_stranger(pl), loader())


@pytest.mark.parametrize("bar", [RichProgress(seconds=0.0), ProgressLines(0.0)])
def test_a_run_without_an_end(bar, make_trainer, make_stranger, loader, capsys) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            trainer.should_stop = trainer.global_step >= 2

    trainer = make_trainer(bar, Stop(), max_steps=-1, max_epochs=-1, enable_progress_bar=True)
    trainer.fit(make_stranger(), loader())
    assert "\nstep 2  " in capsys.readouterr().out


def test_which_metrics_are_shown() -> None:
    names = ("val/loss", "train/kl/k1", "train/kl/k1_per_sequence", "train/loss", "train/lr")
    trainer = SimpleNamespace(callback_metrics={name: torch.tensor(1.5) for name in names})
    found = shown_metrics(trainer, {"v_num": 3, "train/loss": 2.0, "speed": 4.0})
    assert found == {"loss": 1.5, "kl/k1": 1.5, "speed": 4.0}


def test_the_last_sample(make_stranger, make_trainer, rows, tokenizer) -> None:
    module = make_stranger()
    batch = {name: torch.stack([row[name] for row in rows[:2]]) for name in rows[0]}
    asked, answered = last_sample(make_trainer(), module, batch) or ("", "")
    assert asked == ""
    assert answered == tokenizer.decode(rows[1]["input_ids"][:5].tolist(), skip_special_tokens=True)
    assert last_sample(make_trainer(), module, torch.ones(2)) is None
    assert printable("\x1b[2Jabc", 5) == "\N{REPLACEMENT CHARACTER}[2Ja …"


def test_time_left(monkeypatch) -> None:
    """Two of ten steps in 4 seconds leave 8 steps of 2 seconds; 100 tokens in 4 - 1 seconds."""

    class Trainer:
        global_step, estimated_stepping_batches = 0, 10

    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    trainer = Trainer()
    pace = Pace(trainer)
    assert pace.seconds_left(trainer) is None
    pace.count(torch.nn.Module(), {"attention_mask": torch.ones(10, 10)})
    now[0], trainer.global_step = 103.0, 2
    pace.pause()
    now[0] = 104.0
    pace.resume()
    assert pace.seconds_left(trainer) == 16
    assert pace.tokens_per_second(2) == pytest.approx(200 / 3)
    pace.count(torch.nn.Module(), "neither a forest nor a mapping")
    assert pace.tokens_per_second(2) is None


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="redraws_per_second must be above 0"):
        RichProgress(redraws_per_second=0)
