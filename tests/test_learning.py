"""The shipped configurations do their job on the shipped task, measured on rows they have not seen."""

import importlib.util
import re
from pathlib import Path

import pytest

from lit_align.__main__ import main as lit_align

SCRIPTS = Path(__file__).parents[1] / "scripts"
SAMPLES = 200


@pytest.fixture(scope="module")
def demo():
    """The demo, whose measurements are the ones that README shows."""
    spec = importlib.util.spec_from_file_location("lit_align_demo", SCRIPTS / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def base(demo, tmp_path_factory):
    """Figures of the shipped model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("base"))
        return demo.measure(demo.BASE, SAMPLES)[0]


@pytest.mark.slow
def test_the_base_is_of_two_minds(base):
    assert 0.35 <= base.preferred <= 0.65
    assert 0.35 <= base.polite <= 0.65
    assert base.helpful >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("config", ["dpo.yaml", "dpo_lora.yaml"])
def test_dpo_teaches_manners_and_breaks_no_sums(demo, base, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lit_align(["fit", "--config", config]) == 0
    (run,) = Path("runs").glob("*/1")
    # Adapters are folded in: what is measured is what an export is used for.
    assert lit_align(["export", str(run), "--merge", "true", "--output", "merged"]) == 0
    after = demo.measure("merged", SAMPLES)[0]
    assert after.faults(base) == []
    assert after.helpful >= 0.9


@pytest.mark.slow
def test_sft_teaches_manners(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lit_align(["fit", "--config", "sft.yaml"]) == 0
    after = demo.measure("runs/sft/1/export", SAMPLES)[0]
    assert after.polite >= 0.95
    assert after.preferred >= 0.95
    assert after.helpful >= 0.9


@pytest.mark.slow
def test_the_reward_model_tells_manners_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert lit_align(["fit", "--config", "reward.yaml"]) == 0
    capsys.readouterr()
    assert lit_align(["validate", "--config", "reward.yaml", "--model.policy", "runs/reward/1/export"]) == 0
    found = re.search(r"val/accuracy\W+([0-9.]+)", capsys.readouterr().out)
    assert float(found[1]) >= 0.95


@pytest.fixture(scope="module")
def learning():
    """The benchmark of learning, whose measurements are the ones that the docs show."""
    path = Path(__file__).parents[1] / "benchmarks" / "learning.py"
    spec = importlib.util.spec_from_file_location("lit_align_learning", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_ppo_teaches_manners_against_a_trained_reward_model(learning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lit_align(["fit", "--config", "reward.yaml"]) == 0
    reward_model = f"--model.rewards={tmp_path}/runs/reward/1/export"
    before = learning.share_of(learning.BASE, learning.polite_share)
    path, kl, _ = learning.run("ppo", 0, [reward_model, *learning.REWARD_MODEL])
    assert 0.35 <= before <= 0.65
    assert learning.share_of(path, learning.polite_share) >= learning.POLITE_SHARE
    assert 0 < kl <= learning.LARGEST_KL


@pytest.mark.slow
def test_grpo_teaches_sums_in_new_wordings(learning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = learning.share_of(learning.BASE, learning.right_share)
    path, _, _ = learning.run("grpo", 0, [])
    assert learning.share_of(path, learning.right_share) >= before + learning.SUMS_GAIN
