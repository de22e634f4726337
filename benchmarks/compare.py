"""lit-align and TRL on the same rows, by turns, each run in a process of its own.

    python benchmarks/compare.py --peer .venv-trl/bin/python [--plan cpu] [--only sft dpo] [--pairs 3]

Both sides start from the same weights and see the same rows in the same order, with the same optimiser,
clipping and precision. The order alternates (A B, B A, ...), each ratio is taken inside a pair, and the
median is shown with the smallest and the largest. CPU seconds come first: on a machine with other work the
wall clock says more about that work. A row whose losses differ says so, and its ratio counts for nothing.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
#: How far the losses of a step may be apart. bf16 has 8 bits: its losses are compared with their own size.
PARITY = 2e-5
PARITY_BF16 = 2e-2
#: Workloads that draw their own data: each side its own, so that losses cannot be compared.
SAMPLED = ("grpo", "rloo", "ppo", "ppo_shared")


class Row(NamedTuple):
    """One line of the table; ``ours`` are further arguments of our side."""

    workload: str
    shape: str
    rows: int
    steps: int
    both: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        marks = [mark.removeprefix("--") for mark in (*self.both, *self.ours) if mark.startswith("--")]
        return ", ".join([self.workload, *marks])


GROUPED = ("--grouped",)
PLANS: dict[str, list[Row]] = {
    "cpu": [
        *[Row(name, "small", 8, 6) for name in ("sft", "dpo", "dpo_cached", "dpo_lora", "reward")],
        *[Row(name, "small", 8, 6, GROUPED) for name in ("sft", "dpo", "reward")],
        *[Row(name, "small", 8, 6, ("--bf16",)) for name in ("sft", "dpo", "reward")],
        Row("sft", "small", 32, 3),
        Row("sft", "small", 32, 3, ours=("--micro", "600")),
        Row("dpo", "small", 8, 6, ours=("--micro", "600")),
        Row("dpo", "small", 8, 6, ("--bf16", "--checkpointing")),
        *[Row(name, "big", 4, 4) for name in ("sft", "dpo", "dpo_lora", "reward")],
        Row("reward", "big", 4, 4, ours=("--sparse",)),
        Row("overhead", "tiny", 8, 40),
    ],
    "sampled": [
        *[Row(name, "small", 8, 3) for name in ("grpo", "rloo")],
        Row("grpo", "small", 32, 2),
        Row("grpo", "small", 32, 2, ours=("--micro", "600")),
    ],
    # Needs a peer with TRL 1.12, the last that has PPO.
    "ppo": [
        *[Row(name, "small", 8, 3, ("--group", "1")) for name in ("ppo", "ppo_shared")],
        Row("ppo_shared", "small", 8, 3, ("--group", "1"), ours=("--micro", "450")),
    ],
    "smoke": [Row("sft", "tiny", 2, 2), Row("dpo", "tiny", 2, 2)],
}


def run_once(python: str, script: str, row: Row, extra: Sequence[str], threads: int) -> dict[str, Any]:
    if row.workload in SAMPLED:
        script = script.replace(".py", "_sampled.py")
    command = [python, str(HERE / script), row.workload, "--shape", row.shape, "--steps", str(row.steps)]
    command += ["--rows", str(row.rows), "--threads", str(threads), *row.both, *extra]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    raise RuntimeError(f"{' '.join(command)} printed no result:\n{done.stderr[-3000:]}")


def run_pairs(row: Row, peer: str, pairs: int, threads: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    found = []
    for i in range(pairs):
        sides = {}
        for side in ("peer", "ours") if i % 2 == 0 else ("ours", "peer"):
            python, extra = (peer, ()) if side == "peer" else (sys.executable, row.ours)
            sides[side] = run_once(python, f"{side}.py", row, extra, threads)
        found.append((sides["peer"], sides["ours"]))
    return found


def spread(values: Sequence[float]) -> str:
    middle = f"{statistics.median(values):.2f}x"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f}-{max(values):.2f})"


def parity(row: Row, found: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[bool, float]:
    """Whether every step of every pair lost alike, and the largest difference."""
    largest = 0.0
    if row.workload in SAMPLED:
        return True, largest
    for theirs, ours in found:
        if len(theirs["losses"]) != len(ours["losses"]) or not ours["losses"]:
            return False, float("inf")
        for a, b in zip(theirs["losses"], ours["losses"], strict=True):
            # A NaN on either side fails every comparison below.
            difference = abs(a - b) / (max(1.0, abs(a)) if "--bf16" in row.both else 1.0)
            largest = difference if not difference <= largest else largest
    return largest <= (PARITY_BF16 if "--bf16" in row.both else PARITY), largest


HEADER = (
    "| workload | shape, rows | CPU | wall | memory grown | peak memory | TRL tok/CPU-s | ours "
    "| of the limit | losses |\n|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row, found: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    def ratios(of: Callable[[dict[str, Any]], float]) -> str:
        return spread([of(theirs) / of(ours) for theirs, ours in found])

    def speeds(clock: str) -> str:
        # Tokens a second, because sides that sample do not get the same number of tokens.
        rates = [[r["tokens"] / r[clock] for r in pair] for pair in found]
        return spread([ours / theirs for theirs, ours in rates])

    def middle(side: int, of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(of(pair[side]) for pair in found)

    holds, largest = parity(row, found)
    losses = f"equal to {largest:.0e}" if holds else f"PARITY FAILS ({largest:.0e})"
    if row.workload in SAMPLED:
        losses = "sampled"
    # The rate of products is float32's; bf16 has another limit, and decoding is bound by memory.
    bounded = "--bf16" not in row.both and row.shape != "tiny" and row.workload not in SAMPLED
    share = f"{middle(1, lambda r: r['floor'] / r['rate'] / r['cpu']):.0%}" if bounded else "-"
    cells = [
        row.name,
        f"{row.shape}, {row.rows}",
        speeds("cpu"),
        speeds("wall"),
        ratios(lambda r: max(r["grown"], 1.0)),
        ratios(lambda r: r["peak"]),
        f"{middle(0, lambda r: r['tokens'] / r['cpu']):.0f}",
        f"{middle(1, lambda r: r['tokens'] / r['cpu']):.0f}",
        share,
        losses,
    ]
    return "| " + " | ".join(cells) + " |"


def start_up(side: str, results: Sequence[dict[str, Any]]) -> str:
    """What a run has cost before its first step: imports, model, trainer; median over all rows."""
    seconds, megabytes = (statistics.median(r[name] for r in results) for name in ("start", "base"))
    return f"{side} {seconds:.1f} CPU s and {megabytes:.0f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, help="a Python that has TRL")
    parser.add_argument("--plan", default="cpu", choices=list(PLANS))
    parser.add_argument("--only", nargs="+", help='rows of the plan by name, as "sft" "dpo, bf16"')
    parser.add_argument("--shape", help="rows of this shape only")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="append each pair to this file, as a line of JSON")
    a = parser.parse_args(argv)
    chosen = [
        row
        for row in PLANS[a.plan]
        if (not a.only or row.name in a.only) and (not a.shape or row.shape == a.shape)
    ]
    if not chosen:
        parser.error(f"no such row; the plan has {', '.join(repr(row.name) for row in PLANS[a.plan])}")
    print(HEADER, flush=True)
    failed, versions = False, ""
    runs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for row in chosen:
        found = run_pairs(row, a.peer, a.pairs, a.threads)
        runs += found
        failed |= not parity(row, found)[0]
        print(line(row, found), flush=True)
        versions = f"{found[0][0]['version']}, {found[0][1]['version']}"
        if a.out:
            with a.out.open("a") as file:
                for theirs, ours in found:
                    file.write(
                        json.dumps({"row": row.name, "shape": row.shape, "peer": theirs, "ours": ours}) + "\n"
                    )
    theirs, ours = zip(*runs, strict=True)
    print(f"\nBefore the first step: {start_up('TRL', theirs)}, {start_up('lit-align', ours)}")
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load} over 1, 5 and 15 minutes"
    print(f"\n{versions}; {a.pairs} pair(s), {a.threads} thread(s); {machine}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
