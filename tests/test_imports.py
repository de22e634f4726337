"""What an import costs: heavy packages are loaded where they are used, not before."""

import subprocess
import sys
import tomllib
from pathlib import Path

import lightning
import pytest

from lit_align import callbacks

HEAVY = ("peft", "bitsandbytes", "datasets", "transformers")


def modules_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(' '.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing():
    assert not modules_after("import lit_align") & {*HEAVY, "torch", "lightning"}


@pytest.mark.parametrize(
    "code",
    [
        "from lit_align import DPO, SFT, RewardModel",
        "from lit_align.datamodules import PreferenceDataModule, SupervisedDataModule",
        "from lit_align.scoring import references",
        "import lit_align.callbacks",
        "import lit_align.losses.preference",
    ],
)
def test_names_come_without_the_heavy_packages(code):
    assert not modules_after(code) & {"peft", "bitsandbytes", "datasets"}


def test_a_loss_needs_torch_alone():
    assert not modules_after("import lit_align.losses.dpo") & {*HEAVY, "lightning"}


def test_the_contract_of_callbacks_names_all_of_them():
    """That none imports another is held by import-linter, for those that its contract names."""
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    (contract,) = [c for c in pyproject["tool"]["importlinter"]["contracts"] if "callback" in c["name"]]
    found = {getattr(callbacks, name) for name in callbacks.__all__}
    modules = {kind.__module__ for kind in found if issubclass(kind, lightning.Callback)}
    assert len(modules) == 16
    assert modules <= set(contract["modules"])
