"""Kill, stop, starve and corrupt runs many times, and count what survives.

    python benchmarks/chaos.py --kills 100 --terms 50 --corruptions 300 --full 20 --out chaos.md

Every figure is a count of what was tried and what held. A run "survives" when the weights after going on
are, by their SHA-256, those of the run that nothing happened to. ``--tmpfs DIR`` puts the checkpoints on
another file system for half of the kills.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_align.runtime import atomic_file
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.runtime.manifest import fault, newest_complete
from lit_align.runtime.sharded_checkpoint import Processes, save_sharded

ALGORITHMS = ["sft", "reward", "dpo", "dpo_ema", "ppo", "grpo", "rloo", "reinforce_pp", "a2c"]
PARTS = ["save", "corrupt", "full", "nan", "twice", "term", "kill"]
SERVER = Path(__file__).parents[1] / "tests" / "resume" / "runs.py"
SPEC = {"trainer": {"max_epochs": 3}, "saver": {"every_n_train_steps": 1, "save_top_k": 1, "save_last": True}}


class Runs:
    """Training runs, forked from one process that has imported everything."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )

    def __call__(self, out: Path, **spec: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"out": str(out), **spec}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def final(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


def kills(runs: Runs, algorithm: str, times: int, root: Path, chance: random.Random) -> tuple[int, int]:
    """Death at random moments (by a timer that nothing catches), until the run is through."""
    assert runs(root / "whole", algorithm=algorithm, **SPEC) == 0
    expected = final(root / "whole")
    started = time.monotonic()
    assert runs(root / "timed", algorithm=algorithm, **SPEC) == 0
    length = time.monotonic() - started
    killed = survived = attempt = 0
    while killed < times:
        out = root / f"chain{attempt}"
        done = mine = 0
        # Few kills a chain: each must leave the run time to write its first checkpoint.
        while True:
            newest = newest_complete(out / "checkpoints") if (out / "checkpoints").is_dir() else None
            after = chance.uniform(0.1, 1.0) * length if mine < 3 and killed + mine < times else None
            code = runs(out, algorithm=algorithm, kill_after=after, ckpt=newest and str(newest), **SPEC)
            if code == 0:
                break
            assert code == -signal.SIGALRM, (out / "log.txt").read_text()[-3000:]
            mine += 1
        done = int(final(out) == expected)
        killed, survived = killed + mine, survived + done * mine
        attempt += 1
    return survived, killed


def terms(
    runs: Runs, times: int, root: Path, chance: random.Random, over: dict[str, Any] | None = None
) -> tuple[int, int]:
    """SIGTERM at a random micro-batch of windows of two; of several processes, to the first alone."""
    spec: dict[str, Any] = {"algorithm": "sft", "saver": {"every_n_train_steps": 100}, "data": {"count": 13}}
    spec["trainer"] = {"max_epochs": 3, "accumulate_grad_batches": 2, **(over or {})}
    if over:
        # As many batches a process.
        spec["data"] = {"count": 26}
    assert runs(root / "whole", **spec) == 0
    held = 0
    for i in range(times):
        out = root / str(i)
        # 7 micro-batches an epoch, the last of which is a window of its own.
        code = runs(out, signals={str(chance.randint(1, 19)): "SIGTERM"}, **spec)
        path = out / "checkpoints" / "last-preempted.ckpt"
        ok = code == 143 and fault(path) is None
        ok = ok and runs(out / "rest", ckpt=str(path), **spec) == 0
        held += ok and final(out / "rest") == final(root / "whole")
    return held, times


def twice(runs: Runs, algorithms: list[str], root: Path) -> tuple[int, int]:
    """The same seed twice: the same weights, to the last bit."""
    held = 0
    for algorithm in algorithms:
        for part in ("a", "b"):
            assert runs(root / f"{algorithm}-{part}", algorithm=algorithm, **SPEC) == 0
        held += final(root / f"{algorithm}-a") == final(root / f"{algorithm}-b")
    return held, len(algorithms)


def saves(folders: list[Path], save: Callable[[dict[str, Any], Path], None]) -> tuple[int, int]:
    """SIGKILL before and after each system call of a save, over an old name and under a new one."""
    tried = held = 0
    for folder in folders:
        for name in ("1.ckpt", "2.ckpt"):
            point, code = 0, -signal.SIGKILL
            while code == -signal.SIGKILL:
                point += 1
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    code = _killed_save(Path(place), name, point, save)
                    newest = newest_complete(Path(place))
                    loaded = newest and AtomicCheckpointIO().load_checkpoint(newest)
                    loads = loaded is not None and loaded["global_step"] in (1, 2)
                if code == -signal.SIGKILL:
                    tried, held = tried + 1, held + loads
    return held, tried


def one_file(checkpoint: dict[str, Any], path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def directory(checkpoint: dict[str, Any], path: Path) -> None:
    save_sharded(checkpoint, path, Processes(0, 1, lambda value: [value]))


def _state(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"w": torch.ones(10_000)}, "optimizer_states": []}


def _killed_save(folder: Path, name: str, point: int, save: Callable[[dict[str, Any], Path], None]) -> int:
    save(_state(1), folder / "1.ckpt")
    child = os.fork()
    if child == 0:
        reached = 0

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal reached
                reached += 1
                if reached == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = call(*args, **kwargs)
                reached += 1
                if reached == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return run

        for call in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir"):
            setattr(os, call, deadly(getattr(os, call)))
        atomic_file.HashingWriter.write = deadly(atomic_file.HashingWriter.write)  # type: ignore[method-assign]
        save(_state(2), folder / name)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def corruptions(times: int, root: Path, chance: random.Random) -> tuple[int, int]:
    """Cut, flip or swap the newest of two checkpoints."""
    io, held = AtomicCheckpointIO(), 0
    old, new = root / "1.ckpt", root / "2.ckpt"
    for i in range(times):
        for step, path in enumerate((old, new), start=1):
            io.save_checkpoint({"step": step, "weights": torch.rand(1000)}, path)
        content = bytearray(new.read_bytes())
        if i % 3 == 0:
            new.write_bytes(content[: chance.randrange(len(content))])
        elif i % 3 == 1:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            new.write_bytes(content)
        else:
            new.write_bytes(old.read_bytes())
        held += fault(new) is not None and io.load_checkpoint(new)["step"] == 1
    return held, times


def full_disk(times: int, folder: Path) -> tuple[int, int]:
    """Save onto a file system that has no room for a second checkpoint."""
    io, held = AtomicCheckpointIO(), 0
    room = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    path = folder / "last.ckpt"
    io.save_checkpoint({"step": 1, "weights": torch.ones(room // 4 * 6 // 10)}, path)
    for i in range(times):
        try:
            io.save_checkpoint({"step": 2, "weights": torch.ones(room // 4 * 6 // 10 - i)}, path)
        except atomic_file.DiskFull:
            names = sorted(p.name for p in folder.iterdir())
            intact = io.load_checkpoint(path)["step"] == 1
            held += intact and names == ["last.ckpt", "last.ckpt.manifest.json"]
    return held, times


def poisons(runs: Runs, root: Path) -> tuple[int, int]:
    """A NaN in the states, the loss, a gradient or a weight of a step."""
    tried = held = 0
    for algorithm in ("sft", "sft_lora", "reward", "dpo", "dpo_lora", "ppo", "grpo", "rloo", "a2c"):
        for what in ("states", "loss", "gradient", "weights"):
            out = root / f"{algorithm}-{what}"
            # The sixth step is none in which a rollout begins (but for A2C, where each is).
            code = runs(out, algorithm=algorithm, poison={"what": what, "at": 6}, **SPEC)
            seen = (out / "batches.jsonl").read_text().splitlines()
            newest = newest_complete(out / "checkpoints")
            step = newest and torch.load(newest, weights_only=True)["global_step"]
            caught = len(seen) == 6 and step == 5 and "not finite" in (out / "log.txt").read_text()
            tried, held = tried + 1, held + (code == 1 and caught)
    return held, tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="per algorithm")
    parser.add_argument("--terms", type=int, default=50)
    parser.add_argument("--corruptions", type=int, default=300)
    parser.add_argument("--full", type=int, default=20)
    parser.add_argument("--algorithms", nargs="*", default=ALGORITHMS)
    parser.add_argument("--tmpfs", type=Path, help="a folder on another file system")
    parser.add_argument("--small", type=Path, help="an empty folder on a file system of some megabytes")
    parser.add_argument("--two", type=int, default=50, help="SIGTERMs of runs over two processes, each way")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance, runs = random.Random(options.seed), Runs()
    lines = ["| what | tried | held |", "| --- | --- | --- |"]

    def report(what: str, result: tuple[int, int]) -> None:
        lines.append(f"| {what} | {result[1]} | {result[0]} |")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        wanted = set(options.parts)
        for folder in (*PARTS, "ddp", "fsdp2"):
            (root / folder).mkdir()
        if "save" in wanted:
            places = [root / "save", *([options.tmpfs] if options.tmpfs else [])]
            where = f"{len(places)} file system(s)"
            report(f"SIGKILL inside the save of a file, {where}", saves(places, one_file))
            report(f"SIGKILL inside the save of a directory, {where}", saves(places, directory))
        if "corrupt" in wanted:
            found = corruptions(options.corruptions, root / "corrupt", chance)
            report("checkpoint cut, flipped or swapped", found)
        if "full" in wanted and options.small:
            report("disk full", full_disk(options.full, options.small))
        if "nan" in wanted:
            report("NaN in states, loss, gradient or weights", poisons(runs, root / "nan"))
        if "twice" in wanted:
            report("the same seed twice", twice(runs, options.algorithms, root / "twice"))
        if "term" in wanted:
            found = terms(runs, options.terms, root / "term", chance)
            report("SIGTERM inside windows of accumulation", found)
            for strategy in ("ddp", "fsdp2") if options.two else ():
                over = {"devices": 2, "strategy": strategy}
                found = terms(runs, options.two, root / strategy, chance, over)
                report(f"SIGTERM, two processes, {strategy}", found)
        for i, algorithm in enumerate(options.algorithms if "kill" in wanted else ()):
            where = options.tmpfs if options.tmpfs and i % 2 else root
            with tempfile.TemporaryDirectory(dir=where) as place:
                result = kills(runs, algorithm, options.kills, Path(place), chance)
            report(f"killed at random moments, {algorithm}", result)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
