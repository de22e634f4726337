"""Where nothing is sharded there is nothing to put together; two_process/test_exports.py has the shards."""

import torch
from torch import nn

from lit_align.models.whole_weights import whole_weights, without_wrappers


def test_whole_modules_are_left_to_themselves() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert whole_weights([model, None], nn.ModuleList([model])) == {}


def test_nothing_is_taken_out_of_a_model_without_wrappers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = dict(model.named_modules())
    with without_wrappers([model, None]):
        assert dict(model.named_modules()) == before
        torch.testing.assert_close(model(torch.zeros(1, 2)), model[1](model[0](torch.zeros(1, 2))))
