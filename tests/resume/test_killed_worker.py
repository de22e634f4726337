"""A worker of the loader that dies, of too little memory for one, ends the run with an error that says so."""

import time


def test_a_clear_error_soon_and_the_run_goes_on(runs):
    data = {"num_workers": 2, "count": 41}
    spec = {"algorithm": "sft", "trainer": {"max_epochs": 1}, "data": data}
    whole = runs.ends(**spec)
    started = time.monotonic()
    part = runs(kill_worker_at=8, **spec)
    assert time.monotonic() - started < 30
    assert part.code == 1
    assert "DataLoader worker" in part.log
    assert "killed by signal: Killed" in part.log or "exited unexpectedly" in part.log
    assert part.last is not None
    assert runs.ends(ckpt=part.last, **spec).final == whole.final
