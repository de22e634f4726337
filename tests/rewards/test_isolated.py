import copy
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lit_align.rewards.inputs import RewardError
from lit_align.rewards.isolated import RaisedThere, Worker
from lit_align.rewards.limits import TimeLimit

MODULE = """
import os, re, sys, time

def echo(completions, scale=1.0):
    print("a function may print")
    return [scale * len(c) for c in completions]

def judge(completions):
    (text,) = completions
    if text == "hang":
        re.fullmatch("(a+)+$", "a" * 40 + "b")
    if text == "die":
        os._exit(3)
    if text == "raise":
        raise KeyError("x")
    return [1.0]

async def later(completions):
    return [2.0]
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "isolated_functions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name):
        made.append(Worker(f"isolated_functions.{name}"))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_a_call_gives_its_value_and_what_has_no_json_stays_behind(worker):
    echo = worker("echo")
    call = echo.start({"completions": ["a", "bc"], "scale": 0.5, "log_metric": print}, 30)
    assert call.result() == [0.5, 1.0]
    assert worker("later").start({"completions": []}, 30).result() == [2.0]


def test_a_hung_call_is_killed_and_the_next_one_works(worker):
    judge = worker("judge")
    assert judge.start({"completions": ["fine"]}, 30).result() == [1.0]
    process = judge._process
    start = time.monotonic()
    # Python's matcher holds the interpreter: no thread could be stopped here.
    with pytest.raises(TimeLimit, match=r"longer than 0.3 s"):
        judge.start({"completions": ["hang"]}, 0.3).result()
    assert time.monotonic() - start < 5
    assert process.poll() == -signal.SIGKILL
    assert judge.start({"completions": ["fine"]}, 30).result() == [1.0]


def test_exceptions_and_deaths_are_told(worker):
    judge = worker("judge")
    with pytest.raises(RaisedThere, match="KeyError: 'x'"):
        judge.start({"completions": ["raise"]}, 30).result()
    with pytest.raises(RaisedThere, match=r"ended \(exit status 3\)"):
        judge.start({"completions": ["die"]}, 30).result()
    assert judge.start({"completions": ["fine"]}, 30).result() == [1.0]
    os.kill(judge._process.pid, signal.SIGKILL)
    judge._process.wait()
    assert judge.start({"completions": ["fine"]}, 30).result() == [1.0]


def test_a_call_that_nobody_waited_for_does_not_answer_the_next(worker):
    echo = worker("echo")
    echo.start({"completions": ["abc"]}, 30)
    assert echo.start({"completions": ["a"]}, 30).result() == [1.0]


def test_a_copy_has_a_process_of_its_own(worker):
    echo = worker("echo")
    echo.start({"completions": ["a"]}, 30).result()
    for other in (copy.deepcopy(echo), pickle.loads(pickle.dumps(echo))):
        assert other.start({"completions": ["abc"]}, 30).result() == [3.0]
        assert other._process.pid != echo._process.pid
        other.stop()


@pytest.mark.slow
def test_killed_hung_and_raising_at_random_the_caller_is_never_held_up(worker):
    generator, judge, pids = random.Random(0), worker("judge"), set()
    for turn in range(50):
        what = generator.choice(["fine", "hang", "die", "raise", "kill"])
        start = time.monotonic()
        try:
            call = judge.start({"completions": ["hang" if what == "kill" else what]}, 1.0)
            pids.add(judge._process.pid)
            if what == "kill":
                time.sleep(generator.uniform(0, 0.2))
                os.kill(judge._process.pid, signal.SIGKILL)
            assert call.result() == [1.0] == [1.0 * (what == "fine")], turn
        except (RaisedThere, TimeLimit):
            assert what != "fine", turn
        assert time.monotonic() - start < 1 + 5, (turn, what)
    judge.stop()
    assert all(_ends(pid) for pid in pids)


def test_a_function_that_cannot_be_imported(worker):
    with pytest.raises(RewardError, match=r"isolated_functions.nothing.*AttributeError"):
        worker("nothing").start({}, 5)


def test_no_process_outlives_its_parent(tmp_path):
    (tmp_path / "isolated_functions.py").write_text(MODULE)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from lit_align.rewards.isolated import Worker\n"
        "w = Worker('isolated_functions.judge'); w.start({'completions': ['fine']}, 30).result()\n"
        "print(w._process.pid, flush=True)\n"
        "w.start({'completions': [sys.argv[2]]}, 60).result()\n"
        "import time; time.sleep(60)\n"
    )
    for last in ("fine", "raise"):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), last],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as parent:
            child = int(parent.stdout.readline())
            if last == "fine":
                parent.kill()
            parent.wait()
            assert _ends(child)


def _ends(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # A zombie of a parent that is gone is reaped by init, or by nobody in a container.
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return True
        time.sleep(0.05)
    return False


def test_threads_that_call_at_once_get_their_own_answers(worker):
    echo = worker("echo")
    texts = [["a" * n] for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: echo.call({"completions": one}, 30), texts))
    assert found == [[float(n)] for n in range(40)]
