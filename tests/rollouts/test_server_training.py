"""GRPO with completions from a server: the adapter goes over before each rollout, the gap is reported."""

import pytest
import torch

from lit_align import GRPO
from lit_align.models.build import build_causal_lm
from lit_align.rollouts.correction import SamplerCorrection
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.server import ServerGenerator
from lit_align.rollouts.weight_handover import AdapterHandover
from tests.algorithms.on_policy_runs import fit
from tests.rollouts.small_server import SmallServer, serving


def brief(completions):
    return [-float(len(text)) for text in completions]


def test_a_run(tmp_path):
    torch.manual_seed(0)
    server = SmallServer(build_causal_lm("lit-align/tiny"))
    handover = AdapterHandover(str(tmp_path / "adapters"))
    with serving(server) as url:
        module = GRPO(
            {"path": "lit-align/tiny", "lora": {"r": 4}},
            rewards=brief,
            sampling=Sampling(8),
            generator=ServerGenerator(url, "base", handover),
            completions=4,
            lr=0.01,
        )
        assert module.correction == SamplerCorrection()
        _, steps = fit(module, tmp_path, steps=3, batch_size=2)
    names = [f"lit-align-{handover.run}-{i}" for i in range(3)]
    assert [body["model"] for body in server.completions[::8]] == names
    for metrics in steps:
        assert metrics["sampling/sampling_logp_difference/max"] < 1e-3
        assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3)
    # The weights that were handed over had been trained.
    first, last = (server.adapters[name].state_dict() for name in names[1:])
    assert any(not torch.equal(first[name], last[name]) for name in first)
