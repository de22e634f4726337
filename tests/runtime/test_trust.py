"""Names in a configuration are checked before anything is imported."""

import sys
from pathlib import Path

import pytest

from lit_align.runtime import trust


def test_python_is_free() -> None:
    assert trust.load("collections.OrderedDict").__name__ == "OrderedDict"


def test_the_module_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with trust.restricted(), pytest.raises(trust.UntrustedImport, match="stranger_module") as caught:
        trust.load("stranger_module.Thing")
    assert "--trust stranger_module" in caught.value.hint
    assert "stranger_module" not in sys.modules


@pytest.mark.parametrize(
    "path", ["torch.optim.AdamW", "lit_align.runtime.trust.check", "collections.OrderedDict"]
)
def test_what_is_trusted_loads(path: str) -> None:
    with trust.restricted(["collections"]):
        assert trust.load(path) is not None


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "lit_alignment.evil",  # a prefix of the name is not the package
        "torch.load",
        "lit_align.runtime.run_directory.os",  # a module that a trusted one imported
        "lit_align.runtime.trust.importlib",
        "lit_align.runtime.trust.contextmanager",
    ],
)
def test_what_is_not_is_refused(path: str) -> None:
    with trust.restricted(), pytest.raises(trust.UntrustedImport):
        trust.load(path)


def test_restriction_ends() -> None:
    with trust.restricted():
        pass
    trust.check("os.system")


@pytest.mark.parametrize("path", ["AdamW", "torch.optim.AdamX", "torch.optim.nowhere.X"])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(ValueError, match=path):
        trust.load(path)


def test_trust_takes_names() -> None:
    with pytest.raises(ValueError, match="not 'my-package'"), trust.restricted(["my-package"]):
        pass


def test_a_configuration_sends_no_secret_that_was_not_made_for_it() -> None:
    from lit_align.callbacks.endpoint_judge import EndpointJudge
    from lit_align.rollouts.http_json import JsonClient

    with trust.restricted():
        for variable in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"):
            with pytest.raises(trust.UntrustedKey, match=variable) as caught:
                EndpointJudge("http://localhost/v1", "model", key_variable=variable)
            assert f"LIT_ALIGN_KEY_{variable}" in caught.value.hint
            with pytest.raises(trust.UntrustedKey, match=variable):
                JsonClient("http://localhost", key_variable=variable)
        assert JsonClient("http://localhost", key_variable="LIT_ALIGN_KEY_SERVER").url == "http://localhost"
    assert JsonClient("http://localhost", key_variable="HF_TOKEN").key_variable == "HF_TOKEN"
