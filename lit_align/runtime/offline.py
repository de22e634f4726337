"""No network: the libraries that would ask the Hub are told not to, whether they are imported yet or not."""

import os
import sys

#: What they read when they are imported.
VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
#: Where they keep what they read.
_CONSTANTS = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
}


def go_offline() -> None:
    """Let names of models and data mean what lies on this machine, in this process and those it starts."""
    os.environ |= dict.fromkeys(VARIABLES, "1")
    for name, constants in _CONSTANTS.items():
        module = sys.modules.get(name)
        for constant in constants:
            if module is not None:
                setattr(module, constant, True)


def no_telemetry() -> None:
    """Let nobody be told about this run, unless the user has said otherwise."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
