"""The wheel and the sdist hold what they should, and run from a fresh environment."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
ASSETS = ("lit_align/configs/dpo.yaml", "lit_align/shipped/model/config.json", "lit_align/py.typed")

CHECK = """
import importlib.util, json, sys
import lit_align
from lit_align.datamodules import PreferenceDataModule
from lit_align.callbacks.export_hf import ExportHF
from lit_align.shipped import find
from lit_align import DPO
for name in ("datamodules", "callbacks", "configs"):
    assert importlib.util.find_spec(name) is None, f"{name} leaked to the top level"
assert sys.argv[1] not in lit_align.__file__, "the checkout was imported, not the wheel"
assert find("lit-align/tiny").joinpath("model.safetensors").exists()
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def dists(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    # --no-isolation: setuptools comes from this environment, so that no network is needed.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def test_every_package_is_listed():
    found = {
        ".".join((name, *init.parent.relative_to(ROOT / home).parts))
        for name, home in SETUPTOOLS["package-dir"].items()
        for init in (ROOT / home).rglob("__init__.py")
    }
    assert found == set(SETUPTOOLS["packages"])


def test_the_links_are_there():
    for name in ("datamodules", "callbacks", "configs"):
        assert (ROOT / "lit_align" / name).resolve() == ROOT / name


def test_dependencies_are_the_agreed_ones():
    names = {re.split(r"[<>=!\[ ]", d)[0] for d in PROJECT["project"]["dependencies"]}
    assert sorted(names) == [
        "bitsandbytes",
        "datasets",
        "jsonargparse",
        "lightning",
        "peft",
        "rich",
        "torch",
        "torchmetrics",
        "transformers",
    ]
    lightning = next(d for d in PROJECT["project"]["dependencies"] if d.startswith("lightning"))
    assert "!=2.6.2" in lightning
    assert "!=2.6.3" in lightning


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_same_packages(dists):
    sdist, wheel = dists
    inside = set(zipfile.ZipFile(wheel).namelist())
    sources = {p.relative_to(ROOT / "lit_align").as_posix() for p in (ROOT / "lit_align").rglob("*.py")}
    mapped = {
        f"lit_align/{home}/{p.relative_to(ROOT / home).as_posix()}"
        for home in ("datamodules", "callbacks", "configs")
        for p in (ROOT / home).rglob("*.py")
    }
    expected = {f"lit_align/{s}" for s in sources} | mapped | set(ASSETS)
    assert expected <= inside, sorted(expected - inside)
    assert not [n for n in inside if n.split("/")[0] not in ("lit_align",) and ".dist-info" not in n]
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {"datamodules/__init__.py", "configs/dpo.yaml", "LICENSE", "README.md"} <= names
    assert wheel.stat().st_size < 6 * 2**20


@pytest.mark.slow
def test_the_wheel_runs_in_a_fresh_environment(dists, tmp_path):
    """Installed without its dependencies, which are lent from this environment."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(dists[1]), cwd=tmp_path)
    site = next((home / "lib").glob("python*/site-packages"))
    # A plain path in a .pth file lends the packages, but not the editable install beside them.
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(str(python), "-c", CHECK, str(ROOT), cwd=tmp_path)
    script = str(home / "bin" / "lit-align")
    assert "fit" in run(script, "--help", cwd=tmp_path)
    run(script, "fit", "--config", "dpo.yaml", "--trainer.max_steps", "2", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert list((tmp_path / "runs" / "dpo").rglob("export/config.json"))
