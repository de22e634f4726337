"""A look at the weights that a run was started with, when it is resumed."""

from collections.abc import Callable
from typing import Any


def before_restore(pl_module: Any, action: Callable[[], None]) -> Callable[[], None]:
    """Call ``action`` when the model is built and a checkpoint is about to be loaded into it; once.

    Lightning has no hook of a callback there: ``setup`` may come before the weights are built, and
    ``on_fit_start`` comes after the checkpoint's were loaded.

    Args:
        pl_module: the module that is about to run.
        action: is never called where nothing is resumed.

    Returns:
        A function that takes the watch off the module again.
    """
    inner = pl_module.on_load_checkpoint

    def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
        cancel()
        action()
        inner(checkpoint)

    def cancel() -> None:
        # An attribute of the instance hides the method; without it the method is seen again.
        vars(pl_module).pop("on_load_checkpoint", None)

    pl_module.on_load_checkpoint = on_load_checkpoint
    return cancel
