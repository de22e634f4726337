import torch

from lit_align.algorithms.hparams import plain_arguments
from lit_align.rollouts.reward_config import RewardConfig
from lit_align.scoring.references import EMA


class Uncopied(torch.nn.Linear):
    def __deepcopy__(self, memo):
        raise AssertionError("a model is not copied to be described")


def test_arguments_become_plain_data():
    found = plain_arguments(
        {"self": object(), "beta": 0.1, "reference": EMA(alpha=0.5), "rewards": [RewardConfig("polite"), "x"]}
    )
    assert set(found) == {"beta", "reference", "rewards"}
    assert found["rewards"][0]["function"] == "polite"
    assert found["rewards"][1] == "x"
    assert found["reference"]["init_args"]["alpha"] == 0.5


def test_what_has_no_plain_form_is_left_out_and_not_copied():
    found = plain_arguments({"policy": Uncopied(1, 1), "rewards": RewardConfig(model=Uncopied(1, 1))})
    assert found["policy"] is None
    assert found["rewards"]["model"] is None
