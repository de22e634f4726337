"""The process that a function of `lit_align.rewards.isolated` runs in. It imports nothing but that function.

Lines of JSON come in on standard input and go out on what was standard output: the path of the function
first, then one call after another. What the function prints goes to standard error.
"""

import asyncio
import importlib
import inspect
import json
import os
import sys
import threading
import time
from typing import Any

#: Seconds between two looks at whether the parent is still there.
_PULSE = 0.5


def main() -> None:
    """Answer calls until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    function: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if function is None:
                function = _load(request)
                answer: dict[str, Any] = {"result": None}
            else:
                answer = {"result": _plain(_called(function, request["arguments"]))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}
        answers.write(json.dumps({"id": request["id"], **answer}) + "\n")
        answers.flush()


def _load(request: dict[str, Any]) -> Any:
    sys.path[:] = request["sys_path"]
    module, _, name = request["path"].rpartition(".")
    found = getattr(importlib.import_module(module), name)
    return found() if isinstance(found, type) else found


def _called(function: Any, arguments: dict[str, Any]) -> Any:
    value = function(**arguments)
    return asyncio.run(_wait(value)) if inspect.isawaitable(value) else value


async def _wait(value: Any) -> Any:
    return await value


def _plain(value: Any) -> Any:
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _end_with(parent: int) -> None:
    # A parent that was killed closes nobody's loop; without this a hung function would outlive it.
    while os.getppid() == parent:
        time.sleep(_PULSE)
    os._exit(1)


if __name__ == "__main__":
    main()
