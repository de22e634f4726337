"""State of several processes in one checkpoint."""

from lit_align.algorithms.rollout_state import dealt, gathered, place


def test_one_process_is_alone():
    assert place() == (0, 1)
    assert gathered({"a": 1}) == [{"a": 1}]


def test_as_many_processes_keep_their_own():
    assert [dealt([[1, 2], [3]], rank, 2) for rank in range(2)] == [[1, 2], [3]]


def test_others_share_everything_out():
    shares = [dealt([[1, 2], [3, 4, 5]], rank, 3) for rank in range(3)]
    assert shares == [[1, 4], [2, 5], [3]]
