"""The share of wins, by hand; against the start, the base, a path, and given completions."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_align import DPO
from lit_align.callbacks import GenerationSamples, RewardJudge, WinRate
from lit_align.callbacks.win_rate import wilson
from lit_align.datamodules import PreferenceDataModule
from lit_align.models.build import build_reward_model
from lit_align.models.config import ModelConfig

PROMPTS = ["Hello", [{"role": "user", "content": "Where is my order?"}], "Yes"]


class Spy:
    """Gives verdicts out of a list, over and over, and remembers what it was asked."""

    def __init__(self, *verdicts: Any) -> None:
        self.verdicts = verdicts
        self.calls: list[tuple[Any, Any, Any]] = []

    def __call__(self, prompts: Any, firsts: Any, seconds: Any) -> Any:
        self.calls.append((list(prompts), list(firsts), list(seconds)))
        return [self.verdicts[i % len(self.verdicts)] for i in range(len(prompts))]


def _metrics(trainer: Any) -> dict[str, float]:
    return {k: float(v) for k, v in trainer.callback_metrics.items() if "win_rate" in k}


def test_against_the_start(package, make_stranger, make_trainer, loader, tmp_path) -> None:
    """Verdicts 1, 0, 0.5 and exchanged again: a place is favoured, and takes all difference away."""
    spy = Spy(1.0, 0.0, 0.5)
    win = WinRate(PROMPTS, spy, max_new_tokens=4)
    samples = GenerationSamples(PROMPTS, max_new_tokens=4, terminal=False)
    trainer = make_trainer(win, samples, package=package, max_steps=4, val_check_interval=4)
    trainer.fit(make_stranger(package), loader(), loader(8))
    found = _metrics(trainer)
    assert found["val/win_rate"] == 0.5
    assert found["val/win_rate/judged"] == 1
    (prompts, firsts, seconds), (_, again, swapped) = spy.calls
    assert prompts == PROMPTS
    assert (again, swapped) == (seconds, firsts)
    # The same texts as those of the other callback: of the start, and of now.
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    sampled = [line for line in lines if line["mode"] == "sampled"][:3]
    assert seconds == [line["before"] for line in sampled]
    assert firsts == [line["completion"] for line in sampled]
    assert firsts != seconds


def test_one_order_and_missing_verdicts(make_stranger, make_trainer, loader) -> None:
    """Of 1, none and 0.5 the mean is 0.75 over two prompts of three."""
    win = WinRate(PROMPTS, Spy(1.0, None, 0.5), every_n_steps=2, both_orders=False, max_new_tokens=4)
    trainer = make_trainer(win, max_steps=2)
    trainer.fit(make_stranger(), loader())
    found = _metrics(trainer)
    assert found["train/win_rate"] == 0.75
    assert found["train/win_rate/judged"] == pytest.approx(2 / 3)
    assert found["train/win_rate/low"] == pytest.approx(wilson(0.75, 2)[0])


def test_nothing_judged_is_no_rate(make_stranger, make_trainer, loader) -> None:
    trainer = make_trainer(WinRate(PROMPTS, Spy(None), max_new_tokens=4))
    trainer.validate(make_stranger(), loader(), verbose=False)
    assert _metrics(trainer) == {"val/win_rate/judged": 0}


def test_wilson() -> None:
    """10 of 10: (1 + z^2 / 20) / (1 + z^2 / 10) - z / 10 / (1 + z^2 / 10) z / 2 = 1 / (1 + 0.38416)."""
    low, high = wilson(1.0, 10)
    assert low == pytest.approx(1 / 1.38416)
    assert high == pytest.approx(1.0)


def test_given_completions_and_a_path(make_stranger, make_trainer, loader) -> None:
    rows = [{"prompt": "Hello", "completion": "there"}, {"prompt": "No", "completion": "way"}]
    spy = Spy(1.0)
    trainer = make_trainer(WinRate(rows, spy, both_orders=False, max_new_tokens=4))
    trainer.validate(make_stranger(), loader(), verbose=False)
    assert spy.calls[0][2] == ["there", "way"]
    spy = Spy(0.0)
    win = WinRate(PROMPTS, spy, "lit-align/tiny", both_orders=False, temperature=0, max_new_tokens=6)
    trainer = make_trainer(win)
    trainer.validate(make_stranger(), loader(), verbose=False)
    assert _metrics(trainer)["val/win_rate"] == 0
    assert any(len(text) > 3 for text in spy.calls[0][2])


def test_the_base_under_lora_is_the_start(make_stranger, make_trainer, loader) -> None:
    texts = []
    for against in ("start", "adapter_off"):
        spy = Spy(0.5)
        win = WinRate(PROMPTS, spy, against, 2, both_orders=False, max_new_tokens=4)
        make_trainer(win, max_steps=2).fit(make_stranger(lora=True), loader())
        texts.append(spy.calls[0])
    assert texts[0] == texts[1]


def test_a_resumed_run_is_compared_with_its_start(make_stranger, make_trainer, loader, tmp_path) -> None:
    def run(steps: int, path: Path | None = None) -> tuple[Any, Spy]:
        spy = Spy(0.5)
        win = WinRate(PROMPTS, spy, every_n_steps=1, both_orders=False, max_new_tokens=4)
        trainer = make_trainer(win, max_steps=steps)
        trainer.fit(make_stranger(), loader(8), ckpt_path=path)
        return trainer, spy

    _, whole = run(4)
    trainer, _ = run(2)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]
    _, resumed = run(4, tmp_path / "x.ckpt")
    assert resumed.calls == whole.calls[2:]


def test_training_of_ours_is_the_same_bit_for_bit(make_trainer) -> None:
    found = []
    for callbacks in ([], [WinRate(PROMPTS, Spy(1.0), every_n_steps=1, max_new_tokens=6)]):
        L.seed_everything(0)
        module = DPO({"path": "lit-align/tiny", "lora": {"r": 4}}, lr=1e-3)
        data = PreferenceDataModule(train="lit-align/manners-pairs", batch_size=4)
        make_trainer(*callbacks, max_steps=3, limit_val_batches=0).fit(module, data)
        found.append({n: p.detach().clone() for n, p in module.named_parameters()})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_reward_model_as_judge(tokenizer, make_stranger, make_trainer, loader) -> None:
    model = build_reward_model(ModelConfig(path="lit-align/tiny"))
    judge = RewardJudge(model)
    with pytest.raises(RuntimeError, match="attach"):
        judge(["x"], ["a"], ["b"])
    judge.attach(make_stranger(), tokenizer)
    texts = [" you", " I am", "."]
    forward = judge(PROMPTS, texts, [" no", " I am", " yes yes"])
    assert set(forward) <= {0.0, 0.5, 1.0}
    # Equal texts tie, and exchanged sides exchange the verdict.
    assert forward[1] == 0.5
    assert [1 - v for v in judge(PROMPTS, [" no", " I am", " yes yes"], texts)] == forward
    win = WinRate(PROMPTS, judge, max_new_tokens=4)
    assert not win.both_orders
    trainer = make_trainer(win)
    trainer.validate(make_stranger(), loader(), verbose=False)
    # The start against itself.
    assert _metrics(trainer)["val/win_rate"] == 0.5


def test_what_cannot_be_is_told(make_stranger, make_trainer, loader) -> None:
    def validate(win: WinRate) -> None:
        make_trainer(win).validate(make_stranger(), loader(), verbose=False)

    with pytest.raises(ValueError, match="a number between 0"):
        validate(WinRate(PROMPTS, Spy(3.0), max_new_tokens=2))
    with pytest.raises(ValueError, match="for 3 pairs"):
        validate(WinRate(PROMPTS, lambda *sides: [0.5], max_new_tokens=2))
    with pytest.raises(ValueError, match="no adapters to switch off"):
        validate(WinRate(PROMPTS, Spy(1.0), "adapter_off"))
