"""Where a run is written: ``runs/<name>/<n>/``, counted up, never shared by two runs."""

import os
import re
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from lit_align.runtime.manifest import manifest_path, newest_complete

#: Set by the process that chose the directory, so that those it starts write to the same one.
VARIABLE = "LIT_ALIGN_RUN_DIRECTORY"
_SLUG = re.compile(r"[^a-z0-9._-]+")


def slug(name: str) -> str:
    """A name that is safe as a directory: lower case letters, digits, dots, dashes, underscores.

    >>> slug("My DPO run/../x")
    'my-dpo-run-..-x'
    >>> slug("..")
    'run'
    """
    return _SLUG.sub("-", name.lower()).strip("-.") or "run"


def start_run(root: str | Path, name: str) -> Path:
    """Make the next free directory ``root/runs/<name>/<n>`` and return it.

    Process zero makes it, atomically, so that two runs started at once get two directories. Another
    process of the same run gets the same path where process zero started it, and otherwise (torchrun,
    SLURM) a path that it must not write to: ask ``trainer.log_dir``, which Lightning broadcasts.

    Args:
        root: the trainer's ``default_root_dir``.
        name: name of the configuration or of the algorithm.
    """
    folder = Path(root).expanduser() / "runs" / slug(name)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return Path(os.environ.get(VARIABLE, folder / "other-process"))
    folder.mkdir(parents=True, exist_ok=True)
    number = max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0) + 1
    while True:
        run = folder / str(number)
        try:
            run.mkdir()
        except FileExistsError:
            number += 1
            continue
        os.environ[VARIABLE] = str(run.absolute())
        return run


def newest_checkpoint(root: str | Path, name: str) -> Path:
    """The checkpoint written last by any run of this name, among those that are complete and intact.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(root).expanduser() / "runs" / slug(name)
    verified = newest_complete(sorted(folder.glob("*/checkpoints")))
    if verified is not None:
        return verified
    found = [path for path in folder.glob("*/checkpoints/*.ckpt") if not manifest_path(path).exists()]
    if not found:
        raise FileNotFoundError(
            f"no complete checkpoint under {folder}/*/checkpoints; train first, or give a file"
        )

    # Written by another plugin, without manifests. The clock decides; in the same tick, the higher run.
    def age(path: Path) -> tuple[int, int]:
        number = path.parts[-3]
        return path.stat().st_mtime_ns, int(number) if number.isdecimal() else 0

    return max(found, key=age)
