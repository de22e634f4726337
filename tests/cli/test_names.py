"""Names of other trainers are answered with names that exist here."""

import re

import pytest

from lit_align.algorithms.a2c import A2C
from lit_align.algorithms.dpo import DPO
from lit_align.algorithms.grpo import GRPO
from lit_align.algorithms.ppo import PPO
from lit_align.algorithms.reinforce_pp import ReinforcePP
from lit_align.algorithms.reward import RewardModel
from lit_align.algorithms.rloo import RLOO
from lit_align.algorithms.sft import SFT
from lit_align.cli.explain import _parameters
from lit_align.cli.names import OURS, translate
from lit_align.datamodules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
from lit_align.functional.advantages import ADVANTAGE_ESTIMATORS
from lit_align.losses.policy import POLICY_LOSSES
from lit_align.models.config import LoraConfig, ModelConfig, QuantizationConfig
from lit_align.rollouts.server import ServerGenerator
from lit_align.scoring import references

ALGORITHMS = (SFT, RewardModel, DPO, PPO, A2C, GRPO, RLOO, ReinforcePP)


def _exists(option: str, answer: str) -> bool:
    from lightning import Trainer

    head, *rest = option.split(".")
    if not rest:
        return option in ("ckpt_path", "seed_everything", "config")
    if head == "trainer":
        return rest[0] in _parameters(Trainer, [])
    if head == "data":
        modules = (PreferenceDataModule, PromptDataModule, SupervisedDataModule)
        return any(rest[0] in _parameters(cls, []) for cls in modules)
    if rest[0] == "policy" and len(rest) > 1:
        nested = {"lora": LoraConfig, "quantization": QuantizationConfig}.get(rest[1])
        names = _parameters(nested, []) if nested and len(rest) > 2 else _parameters(ModelConfig, [])
        return rest[-1] in names
    if rest[0] == "reference" and (found := re.search(r"--model\.reference ([A-Za-z]+)", answer)):
        cls = getattr(references, found[1])
        return len(rest) == 1 or rest[1] in _parameters(cls, [])
    if rest[0] == "generator":
        return len(rest) == 1 or rest[1] in _parameters(ServerGenerator, [])
    names = {name for cls in ALGORITHMS for name in _parameters(cls, rest[:-1])}
    return rest[-1] in names


@pytest.mark.parametrize("name", OURS)
def test_answers_name_existing_options(name: str) -> None:
    for option in re.findall(r"--([a-z_]+(?:\.[a-z_]+)*)", OURS[name]):
        assert _exists(option, OURS[name]), f"{name} is answered with --{option}, which does not exist"


def test_the_values_in_answers_are_values_that_there_are() -> None:
    advantages = re.findall(r"--model\.advantages ([\w, ]+?)(?: \(|$)", " ".join(OURS.values()))
    names = {name for found in advantages for name in re.split(r", | or ", found)}
    assert {"group_normalised", "batch_normalised", "group_mean", "gdpo"} == names
    assert names <= set(ADVANTAGE_ESTIMATORS)
    options = {
        key for answer in OURS.values() for key in re.findall(r"--model\.loss_options '\{(\w+):", answer)
    }
    assert len(options) == 7
    assert options <= {key for loss in POLICY_LOSSES.values() for key in loss.signature.hyperparameters}


def test_spelling_of_the_shell_is_understood() -> None:
    assert translate("--learning-rate") == "--model.lr"
    assert translate("no_such_name") is None
