"""A server that forks the processes of a distributed run, so that a test pays for the imports once.

Reads lines of JSON, ``{"script": "sharded", "arguments": [...], "processes": 2, "log": PATH}``, and answers
each with the exit statuses of the processes (negative: the signal that ended one).
"""

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def fork_ranks(main: Callable[[], None], processes: int, log: Path) -> list[int]:
    """Run ``main`` in so many processes that find each other as those of Lightning's launcher do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        if processes > 1:
            os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        _die_as(_status(main, log))
    statuses: dict[int, int] = {}
    while len(statuses) < processes:
        pid, status = os.wait()
        statuses[pid] = os.waitstatus_to_exitcode(status)
        if statuses[pid] not in (0, 143):
            # The others wait for this one.
            for other in set(children) - statuses.keys():
                os.kill(other, signal.SIGKILL)
    return [statuses[child] for child in children]


def _status(main: Callable[[], None], log: Path) -> int:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _die_as(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve() -> None:
    # Imported before the fork, so that no run pays for it.
    import peft
    import transformers.models.llama.modeling_llama  # noqa: F401

    assert peft
    if importlib.util.find_spec("deepspeed"):
        # It talks, and standard output is for answers.
        with contextlib.redirect_stdout(sys.stderr):
            importlib.import_module("deepspeed")
    scripts = {
        name: importlib.import_module(name)
        for name in (
            "callback_faults",
            "callback_runs",
            "exports",
            "failures",
            "on_policy",
            "full_kl",
            "rollouts",
            "sharded",
            "sharded_copies",
            "split",
            "split_families",
            "step",
        )
    }
    for line in sys.stdin:
        request = json.loads(line)
        script = scripts[request["script"]]
        statuses = fork_ranks(
            lambda script=script, request=request: script.run(request["arguments"]),  # type: ignore[misc]
            request["processes"],
            Path(request["log"]),
        )
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    serve()
