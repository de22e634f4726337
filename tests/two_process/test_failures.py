"""Where one process cannot go on, the other is told why instead of waiting for it."""

import pytest


@pytest.mark.parametrize(
    ("kind", "own", "told"),
    [
        (
            "handover",
            "ServerUnreachableError: http://127.0.0.1:9/collective_rpc gave no answer",
            "it handed version 4 of the weights to http://127.0.0.1:9: ServerUnreachableError: ",
        ),
        (
            "reward",
            "RewardError: the grader is out of order",
            "it rewarded completions: RewardError: the grader is out of order",
        ),
    ],
)
def test_all_processes_raise_what_stopped_the_first(kind, own, told, forked, tmp_path):
    forked("failures", 2, tmp_path, kind, tmp_path)
    assert (tmp_path / f"{kind}.0").read_text().startswith(own)
    assert (tmp_path / f"{kind}.1").read_text().startswith(f"FailedElsewhere: process 0 failed while {told}")
