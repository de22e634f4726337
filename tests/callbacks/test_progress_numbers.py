"""Numbers of progress; the displays that show them have tests of their own."""

from types import SimpleNamespace

import pytest

from lit_align.callbacks.progress_numbers import clock, total_steps


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3600, "1:00:00"), (3725, "1:02:05")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_how_many_steps_there_are() -> None:
    assert total_steps(SimpleNamespace(max_steps=-1, estimated_stepping_batches=12)) == 12
    assert total_steps(SimpleNamespace(max_steps=1000, estimated_stepping_batches=3)) == 3
    assert total_steps(SimpleNamespace(max_steps=-1, estimated_stepping_batches=float("inf"))) is None
    assert total_steps(SimpleNamespace(max_steps=-1, estimated_stepping_batches=-1)) is None
