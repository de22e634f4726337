"""Less noise around a run: what other libraries say that nobody can act on."""

import logging
import sys
import warnings


def quieten() -> None:
    """Leave out advertisements, and progress bars where there is no terminal to redraw them on.

    Warnings that tell about the run itself stay.
    """
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, _NoTips) for one in logger.filters):
            logger.addFilter(_NoTips())
    # Deprecations inside of Lightning, for its developers.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # A frozen reference is in evaluation mode on purpose.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    # The run's directory is made before the logger looks at it.
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    # No validation data were asked for.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
    # A run that continues another writes to a directory of its own.
    warnings.filterwarnings("ignore", message="The dirpath has changed from.*")
    # Two dimensions of processes need two sums.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


class _NoTips(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage()
