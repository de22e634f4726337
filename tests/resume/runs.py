"""A server that forks one training run per request, so that a test pays for the imports once.

Reads specifications as lines of JSON, answers each with the exit status of the run (negative: the
signal that ended it). A run of several processes (``trainer: {devices: 2}``) is that many forks.
"""

import hashlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lit_align.callbacks import ExactResume, NanGuard, Preemption
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.runtime.sharded_strategy import ShardedStrategy  # registers fsdp2, too

# Tests are no package, and the doctest collector imports scripts from elsewhere.
sys.path.insert(0, str(Path(__file__).parents[1] / "two_process"))
sys.path.insert(0, str(Path(__file__).parent))
from disturbances import Disturb, Poison, Watch
from ranks import fork_ranks
from subjects import Noisy, data_of, module_of


def digest(module: L.LightningModule) -> str:
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, DTensor):
            value = value.full_tensor()
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def run(spec: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= spec.get("env", {})
    warnings.filterwarnings("ignore")
    out = Path(spec["out"])
    out.mkdir(parents=True, exist_ok=True)
    if spec.get("kill_after"):
        # Its default is death on the spot, as of SIGKILL, whatever is being done.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, spec["kill_after"])
    module = module_of(spec["algorithm"], out)
    resume = ExactResume(**spec.get("resume", {"seed": 5}))
    saver: dict[str, Any] = {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"}
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, **spec.get("trainer", {})}
    if isinstance(options.get("strategy"), dict):
        options["strategy"] = ShardedStrategy(**options["strategy"])
    trainer = L.Trainer(
        default_root_dir=out,
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            resume,
            *([Disturb()] if spec.get("disturb") else []),
            Watch(out / "batches.jsonl", spec),
            *([Poison(**spec["poison"])] if "poison" in spec else []),
            Preemption(save_file=out / "SAVE"),
            NanGuard(),
            ModelCheckpoint(out / "checkpoints", **(saver | spec.get("saver", {}))),
        ],
        **options,
    )
    data = data_of(spec["algorithm"], spec.get("data", {}))
    loader = None
    if data is None:
        loader = DataLoader(Noisy(), **({"batch_size": 2, "shuffle": True} | spec.get("data", {})))
    trainer.fit(module, loader, datamodule=data, ckpt_path=spec.get("ckpt"), weights_only=True)
    # All processes gather what is sharded.
    weights = digest(module)
    if trainer.is_global_zero:
        result = {
            "digest": weights,
            "global_step": trainer.global_step,
            "epoch": trainer.current_epoch,
        }
        (out / "result.json").write_text(json.dumps(result))


def processes_of(spec: dict[str, Any]) -> int:
    return int(spec.get("trainer", {}).get("devices", 1))


def serve() -> None:
    # Imported before the fork, so that no run pays for it.
    import peft
    import transformers.models.llama.modeling_llama  # noqa: F401

    assert peft
    for line in sys.stdin:
        spec = json.loads(line)
        out = Path(spec["out"])
        out.mkdir(parents=True, exist_ok=True)
        statuses = fork_ranks(lambda spec=spec: run(spec), processes_of(spec), out / "log.txt")  # type: ignore[misc]
        # Process zero's, unless it was ended because of another.
        first = next((code for code in statuses if code not in (0, -signal.SIGKILL)), statuses[0])
        print(statuses[0] if spec.get("kill_at") else first, flush=True)


if __name__ == "__main__":
    serve()
