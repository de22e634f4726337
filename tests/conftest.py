"""Fixtures that tests of several folders use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The first call of a torch function can take long on a busy machine: that is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

GOLDENS = Path(__file__).parents[2] / "shared" / "goldens"


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Folder of the reference numbers, with the tiny models that they were computed with."""
    if not GOLDENS.is_dir():
        pytest.skip(f"the reference numbers are not here: no folder {GOLDENS}")
    return GOLDENS


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Callable[[str], dict[str, Any]]:
    """``golden("dpo")`` reads ``dpo.json``, and adds ``by_id``: its cases by their short name."""

    def read(name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((golden_folder / f"{name}.json").read_text())
        content["by_id"] = {case["id"].removeprefix(f"{name}/"): case for case in content["cases"]}
        return content

    return read


@pytest.fixture(scope="session")
def golden_models(golden_folder: Path) -> Path:
    """Folder of the tiny models that the reference numbers belong to."""
    return golden_folder / "models"
