"""What the tables of docs/ list is all there is: algorithms, arguments, losses, metrics, names."""

import re
from pathlib import Path

import pytest

from lit_align.cli.names import OURS
from lit_align.losses.preference import DIVERGENCES, PREFERENCE_LOSSES
from tests.doc_pages import ROOT, run_command

#: The page of each algorithm.
ALGORITHMS = {
    "SFT": "sft",
    "RewardModel": "reward",
    "DPO": "dpo",
    "PPO": "ppo",
    "A2C": "a2c",
    "GRPO": "grpo",
    "RLOO": "rloo",
    "ReinforcePP": "reinforce_pp",
}


def test_every_algorithm_has_a_page() -> None:
    import importlib
    import inspect

    from lit_align.algorithms.base import AlignModule

    found = {}
    for path in (ROOT / "lit_align/algorithms").glob("*.py"):
        module = importlib.import_module(f"lit_align.algorithms.{path.stem}")
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and issubclass(value, AlignModule) and not inspect.isabstract(value):
                found[name] = path.stem
    # What PPO and A2C share can be built, but is described on their pages.
    found.pop("ActorCriticModule")
    assert found == ALGORITHMS
    pages = {path.stem for path in (ROOT / "docs/algorithms").glob("*.md")}
    assert pages == {*ALGORITHMS.values(), "on_policy"}


@pytest.mark.parametrize(("algorithm", "name"), ALGORITHMS.items())
def test_an_algorithm_s_page_has_every_argument(algorithm: str, name: str) -> None:
    import inspect
    from dataclasses import fields

    import lit_align
    from lit_align.algorithms.shaping import KLPenalty, ScoreShaping

    page = (ROOT / f"docs/algorithms/{name}.md").read_text(encoding="utf-8")
    table = page[page.index("## Configuration") : page.index("## Metrics")]
    arguments = set(inspect.signature(getattr(lit_align, algorithm).__init__).parameters) - {"self"}
    if algorithm == "PPO":
        arguments = arguments - {"kl", "scores"} | {f"kl.{field.name}" for field in fields(KLPenalty)}
        arguments |= {f"scores.{field.name}" for field in fields(ScoreShaping)}
    for argument in arguments:
        assert f"`{argument}`" in table, f"{name}.md lacks {argument}"


def test_every_policy_loss_and_advantage_has_a_page() -> None:
    from lit_align.functional.advantages import ADVANTAGE_ESTIMATORS
    from lit_align.losses.policy import POLICY_LOSSES

    text = (ROOT / "docs/algorithms/grpo.md").read_text(encoding="utf-8")
    for name in set(POLICY_LOSSES) - {"ppo", "a2c", "rloo", "reinforce_pp"}:
        assert f"| `{name}`" in text, f"grpo.md lacks the loss {name}"
    for name in set(ADVANTAGE_ESTIMATORS) - {"gae", "reinforce_pp"}:
        assert f"`{name}`" in text, f"grpo.md lacks the advantages {name}"


def test_every_loss_and_divergence_is_in_the_table() -> None:
    page = (ROOT / "docs/losses.md").read_text(encoding="utf-8")
    for name, loss in PREFERENCE_LOSSES.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        *_, divergences, couples, _ = (cell.strip() for cell in row.split("|"))
        assert divergences.startswith("yes" if loss.allows_divergence else "no"), name
        assert couples == ("**yes**" if loss.couples_batch else "no"), name
    for name in DIVERGENCES:
        assert f"| `{name}`" in page


ON_POLICY = ["ppo.yaml", "a2c.yaml", "grpo.yaml", "rloo.yaml", "reinforce_pp.yaml"]


@pytest.mark.parametrize("config", ["sft.yaml", "reward.yaml", "dpo.yaml", *ON_POLICY])
def test_every_metric_of_a_run_is_in_the_table(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path / "cache"))
    status, text = run_command(
        f"lit-align fit --config {config} --trainer.max_steps 2 --trainer.log_every_n_steps 1 "
        "--data.limit 64 --trainer.val_check_interval 2 --trainer.limit_val_batches 1"
    )
    assert status == 0, text
    (found,) = tmp_path.glob("runs/*/1/metrics.csv")
    names = set(found.read_text().splitlines()[0].split(",")) - {"epoch", "step"}
    assert any(name.startswith("val/") for name in names), names
    assert any(name.startswith("train/") for name in names), names
    sections = {"sft.yaml": "## SFT", "reward.yaml": "## RewardModel", "dpo.yaml": "## DPO"}
    section = sections.get(config, "## On-policy")
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    start = page.index(section)
    tables = (
        page[page.index("## All algorithms") : page.index("## SFT")]
        + page[start : page.index("\n## ", start + 1)]
        + page[page.index("## Rewards") : page.index("## Columns")]
    )
    for name in names:
        bare = re.sub(r"^rewards/(polite|numeric_answer)/", "rewards/NAME/", name.partition("/")[2])
        assert f"`{bare}`" in tables, f"docs/metrics.md lacks {bare}"


def test_every_name_of_trl_is_in_the_table() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8").replace("`", "")
    for theirs, ours in OURS.items():
        assert f"| {theirs} | {ours} |" in page


def test_the_names_we_answer_with_exist() -> None:
    """An answer that names an option which does not exist would be worse than none."""
    import inspect
    from dataclasses import fields

    import lightning as L

    import lit_align
    from lit_align import LoraConfig, ModelConfig, QuantizationConfig
    from lit_align.algorithms.optim import OptimConfig
    from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
    from lit_align.datamodules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
    from lit_align.models.value_head import ValueHeadConfig
    from lit_align.rollouts.correction import SamplerCorrection
    from lit_align.rollouts.reward_config import RewardConfig
    from lit_align.rollouts.sampling import Sampling
    from lit_align.rollouts.server import ServerGenerator
    from lit_align.scoring.references import EMA, FromPath, NamedAdapter, SharedLayers

    def arguments(*classes: type) -> set[str]:
        return {name for cls in classes for name in inspect.signature(cls.__init__).parameters}  # type: ignore[misc]

    known = {
        "trainer": arguments(L.Trainer),
        "data": arguments(PreferenceDataModule, PromptDataModule, SupervisedDataModule),
        "model": arguments(*(getattr(lit_align, name) for name in ALGORITHMS)),
        "model.sampling": {f.name for f in fields(Sampling)},
        "model.correction": {f.name for f in fields(SamplerCorrection)},
        "model.kl": {f.name for f in fields(KLPenalty)},
        "model.scores": {f.name for f in fields(ScoreShaping)},
        "model.value_head": {f.name for f in fields(ValueHeadConfig)},
        "model.policy": {f.name for f in fields(ModelConfig)},
        "model.policy.lora": {f.name for f in fields(LoraConfig)},
        "model.policy.quantization": {f.name for f in fields(QuantizationConfig)},
        "model.optim": {f.name for f in fields(OptimConfig)},
        "model.reference": arguments(EMA, FromPath, NamedAdapter, SharedLayers),
        "model.rewards": {f.name for f in fields(RewardConfig)},
        "model.generator": arguments(ServerGenerator),
    }
    for theirs, ours in OURS.items():
        for group, name in re.findall(r"--([a-z_.]+)\.([a-z_]+)", ours):
            assert name in known[group], f"{theirs} is answered with --{group}.{name}"
