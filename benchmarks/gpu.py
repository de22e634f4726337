"""One GPU: tokens a second, share of the card's peak (MFU) and peak memory, of lit-align and of TRL.

    python benchmarks/gpu.py [--peer .venv-trl/bin/python] [--shape 0.5B] [--only sft,dpo] [--pairs 3]
    python benchmarks/gpu.py --device cpu --shape tiny   # only walks through the code

bf16, the rows of benchmarks/compare.py, a process for each run, sides by turns. The first two steps of a run
warm up and are not counted.
"""

import argparse
import platform
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from compare import Row, parity, run_once

WARM_UP = 2
#: Dense bf16 operations in a second, from the makers' data sheets.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def throughput(result: dict[str, Any]) -> float:
    """Useful tokens in a second, over the steps behind the warm-up; all steps count as alike."""
    times = result["times"]
    share = (len(times) - WARM_UP) / len(times)
    return float(result["tokens"] * share / (times[-1] - times[WARM_UP - 1]))


def utilisation(result: dict[str, Any], peak: float | None) -> str:
    if peak is None:
        return "-"
    return f"{throughput(result) / result['tokens'] * result['floor'] / peak:.0%}"


def peak_of(device: str) -> float | None:
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def line(row: Row, side: str, results: Sequence[dict[str, Any]], peak: float | None) -> str:
    best = statistics.median(throughput(r) for r in results)
    mfu = utilisation(results[0], peak) if "floor" in results[0] else "-"
    memory = max(r.get("gpu_peak") or r["peak"] for r in results) / 1024
    last = results[0]["losses"][-1]
    cells = [
        row.workload,
        f"{row.shape}, {row.rows}",
        side,
        f"{best:,.0f}",
        mfu,
        f"{memory:.2f}",
        f"{last:.4f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--peer", help="a Python that has TRL; without, only our side runs")
    parser.add_argument("--shape", default="0.5B")
    parser.add_argument("--only", default="sft,dpo,dpo_lora,reward")
    parser.add_argument("--attention", default="sdpa", help="sdpa, flex_attention, flash_attention_2, ...")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=3)
    a = parser.parse_args(argv)
    if a.steps <= WARM_UP:
        parser.error(f"--steps is {a.steps}: the first {WARM_UP} warm up, so give at least {WARM_UP + 1}")
    if a.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is here; --device cpu --shape tiny walks through the code without one")
    peak = peak_of(a.device)
    print("| workload | shape, rows | side | tokens/s | MFU | peak memory, GiB | last loss |")
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = False
    for workload in a.only.split(","):
        row = Row(
            workload, a.shape, a.rows, a.steps, ("--bf16", "--device", a.device, "--attention", a.attention)
        )
        found: dict[str, list[dict[str, Any]]] = {"TRL": [], "lit-align": []}
        for i in range(a.pairs):
            for side in ("TRL", "lit-align") if i % 2 == 0 else ("lit-align", "TRL"):
                if side == "lit-align":
                    found[side].append(run_once(sys.executable, "ours.py", row, (), 8))
                elif a.peer:
                    found[side].append(run_once(a.peer, "peer.py", row, (), 8))
        for side, results in found.items():
            if results:
                print(line(row, side, results, peak), flush=True)
        if found["TRL"]:
            holds, largest = parity(row, list(zip(found["TRL"], found["lit-align"], strict=True)))
            failed |= not holds
            print(f"losses {'equal to' if holds else 'PARITY FAILS:'} {largest:.0e}", flush=True)
    card = torch.cuda.get_device_name() if a.device == "cuda" else "no GPU"
    print(f"\n{card}; torch {torch.__version__}, Python {platform.python_version()}")
    if a.device == "cpu":
        print("Nothing was measured on a GPU: this run only shows that the code runs.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
