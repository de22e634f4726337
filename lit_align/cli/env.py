"""``lit-align env``: what a bug report needs to say about a machine."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from lit_align.cli.errors import CommandLineError

_PACKAGES = (
    "lit-align",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "torchmetrics",
    "jsonargparse",
    "tensorboard",
    "deepspeed",
)


def main(argv: Sequence[str]) -> None:
    """Print versions and devices."""
    if any(arg in ("-h", "--help") for arg in argv):
        print("usage: lit-align env\n\nVersions and devices, for a bug report.")
        return
    if argv:
        raise CommandLineError(f"env takes no arguments, but got {' '.join(argv)}", "lit-align env")
    rows = {"python": platform.python_version(), "platform": platform.platform()}
    rows |= {name: _version(name) for name in _PACKAGES}
    rows |= _devices()
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": f"{cores} cores, {torch.get_num_threads()} threads"}
    if not torch.cuda.is_available():
        return {**found, "cuda": "none"}
    found["cuda"] = f"{torch.version.cuda}, nccl {'.'.join(map(str, torch.cuda.nccl.version()))}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        found[f"gpu {index}"] = f"{properties.name}, {memory:.0f} GiB"
    return found
