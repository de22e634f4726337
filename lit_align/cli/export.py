"""``lit-align export``: the model of a run or of a checkpoint as a Hugging Face directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_align.cli.errors import CommandLineError
from lit_align.cli.options import SmallParser
from lit_align.cli.report import CONFIG_FILE
from lit_align.runtime.manifest import is_sharded, newest_complete


def main(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        CommandLineError: the source holds no checkpoint, or nothing says how its model is built.
    """
    parser = SmallParser(
        prog="lit-align export", description="Write a trained model as a Hugging Face directory."
    )
    parser.add_argument("source", type=str, help="a run (runs/dpo/1), or a checkpoint of one")
    parser.add_argument(
        "--output", type=str, help="the directory; export, or export-merged, in the run by default"
    )
    parser.add_flag(
        "--merge",
        help="fold adapters into the weights (a quantised base in full precision)",
    )
    parser.add_argument(
        "--trust", type=str, default="", help="packages that the run's configuration may import"
    )
    arguments = parser.read(argv)

    from lit_align.cli.quiet import quieten

    quieten()
    run, checkpoint = _find(Path(arguments.source).expanduser())
    output = (
        Path(arguments.output)
        if arguments.output
        else run / ("export-merged" if arguments.merge else "export")
    )
    module = _build(run / CONFIG_FILE, [name for name in arguments.trust.split(",") if name])
    _load(module, checkpoint)

    from lit_align.models.export import critic_parts, save_pretrained_dir

    written = save_pretrained_dir(
        module.policy.model,
        module.tokenizer,
        output,
        merge=arguments.merge,
        value_head=getattr(module.policy, "value_head", None),
        critic=critic_parts(getattr(module, "critic", None)),
    )
    print(f"{checkpoint} written to {written}")


def _find(source: Path) -> tuple[Path, Path]:
    """The run's directory and the checkpoint meant."""
    if source.is_dir() and not is_sharded(source):
        checkpoint = _newest(source)
    elif source.exists():
        checkpoint = source
    else:
        raise CommandLineError(f"{source}: there is no such run or file", f"looked in {Path.cwd()}")
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / CONFIG_FILE).is_file():
            return folder, checkpoint
    raise CommandLineError(
        f"there is no {CONFIG_FILE} beside {checkpoint} or above it",
        "it says how the model is built, and is written with every run; put it there",
    )


def _newest(run: Path) -> Path:
    """The last checkpoint of a run that is complete, or the newest where they have no manifests."""
    folder = run / "checkpoints"
    verified = newest_complete(folder)
    found = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if verified is None and not found:
        raise CommandLineError(
            f"{run} holds no checkpoints/*.ckpt", "name a run (runs/dpo/1) or a .ckpt file"
        )
    return verified if verified is not None else found[-1]


def _build(config: Path, trusted: Sequence[str]) -> Any:
    """The run's module with its model as it was before training, and without a reference."""
    from lit_align.algorithms.base import AlignModule
    from lit_align.cli.train import build_model

    module = build_model(config, trusted)
    # The algorithm's own configure_model would build the reference too, which is not exported.
    AlignModule.configure_model(module)
    return module


def _load(module: Any, checkpoint: Path) -> None:
    from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
    from lit_align.runtime.trainable import check_saved, saved_names

    content = AtomicCheckpointIO().load_checkpoint(checkpoint)
    parts = ("policy.", "critic.")
    weights = {name: value for name, value in content["state_dict"].items() if name.startswith(parts)}
    check_saved(weights, frozenset(name for name in saved_names(module) if name.startswith(parts)))
    module.load_state_dict(weights, strict=False)
