"""Fine-tune and align language models as composable PyTorch Lightning parts.

The public names are imported on first use, so that ``import lit_align`` costs nothing and a
foreign project that wants one loss does not pay for the rest.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_align.algorithms.a2c import A2C as A2C
    from lit_align.algorithms.dpo import DPO as DPO
    from lit_align.algorithms.grpo import GRPO as GRPO
    from lit_align.algorithms.ppo import PPO as PPO
    from lit_align.algorithms.reinforce_pp import ReinforcePP as ReinforcePP
    from lit_align.algorithms.reward import RewardModel as RewardModel
    from lit_align.algorithms.rloo import RLOO as RLOO
    from lit_align.algorithms.sft import SFT as SFT
    from lit_align.batches import Forest as Forest
    from lit_align.models.config import LoraConfig as LoraConfig
    from lit_align.models.config import ModelConfig as ModelConfig
    from lit_align.models.config import QuantizationConfig as QuantizationConfig
    from lit_align.outputs import LossOutput as LossOutput
    from lit_align.outputs import Scores as Scores

__version__ = "0.1.0"

_HOME = {
    "A2C": "lit_align.algorithms.a2c",
    "GRPO": "lit_align.algorithms.grpo",
    "PPO": "lit_align.algorithms.ppo",
    "RLOO": "lit_align.algorithms.rloo",
    "ReinforcePP": "lit_align.algorithms.reinforce_pp",
    "DPO": "lit_align.algorithms.dpo",
    "SFT": "lit_align.algorithms.sft",
    "RewardModel": "lit_align.algorithms.reward",
    "Forest": "lit_align.batches",
    "LossOutput": "lit_align.outputs",
    "Scores": "lit_align.outputs",
    "LoraConfig": "lit_align.models.config",
    "ModelConfig": "lit_align.models.config",
    "QuantizationConfig": "lit_align.models.config",
}

__all__ = [
    "A2C",
    "DPO",
    "GRPO",
    "PPO",
    "RLOO",
    "SFT",
    "Forest",
    "LoraConfig",
    "LossOutput",
    "ModelConfig",
    "QuantizationConfig",
    "ReinforcePP",
    "RewardModel",
    "Scores",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lit_align' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
