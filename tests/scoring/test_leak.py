"""Which architectures take the flat layout, and that it is exact in those."""

import pytest
import torch

from lit_align.scoring import flat, leak, padded
from lit_align.scoring.layout import flat_layout
from tests.scoring.architectures import FLAT, GROUPED, PADDED, build


@pytest.mark.parametrize("kind", sorted(FLAT))
def test_flat_architectures(kind):
    model = build(kind, FLAT[kind])
    assert leak.fits(model), leak._reason(model)
    batch = leak.probe(53)
    with torch.no_grad():
        ours = flat.score(model, batch, flat_layout(batch)).logps
        theirs = padded.score(model, batch).logps
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(PADDED))
def test_architectures_that_are_padded(kind, caplog):
    caplog.set_level("INFO")
    assert not leak.fits(build(kind, PADDED[kind]))
    assert "batches are padded, not flat" in caplog.text


def test_a_leak_is_seen(monkeypatch):
    """With the layout lost on the way, every document sees the whole row before it."""
    model = build("llama", GROUPED)

    def leaky(layout):
        return torch.ones((1, 1, sum(layout.pieces), sum(layout.pieces)), dtype=torch.bool).tril()

    monkeypatch.setattr(flat, "carrier", leaky)
    assert "depend on its neighbours" in leak._reason(model)


def test_autocast_does_not_look_like_a_leak():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert leak.fits(build("llama", GROUPED))


def test_eager_attention_is_left_alone():
    model = build("llama", GROUPED)
    model.set_attn_implementation("eager")
    assert "eager" in leak._reason(model)
    assert model.config._attn_implementation == "eager"


def test_a_window_limits_the_length_of_documents():
    assert leak.longest_document(build("mistral", GROUPED | {"sliding_window": 7})) == 7
    assert leak.longest_document(build("llama", GROUPED)) is None


def test_the_mode_is_restored():
    model = build("llama", GROUPED).train()
    leak.fits(model)
    assert model.training


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"),
    ],
)
def test_a_full_device_is_not_taken_for_a_leak(error, monkeypatch):
    def full(*arguments):
        raise error

    monkeypatch.setattr(flat, "score", full)
    with pytest.raises(type(error), match=str(error)[:20]):
        leak.fits(build("llama", GROUPED))


def test_a_model_that_refuses_a_flat_row_is_padded(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(flat, "score", refuse)
    assert "refuses a flat row (shapes do not match)" in leak._reason(build("llama", GROUPED))


def test_the_question_is_asked_in_full_precision(monkeypatch):
    """TF32 rounds to 10 bits, which is more than the tolerance of float32 allows."""
    seen = []
    score = flat.score

    def spy(*arguments):
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return score(*arguments)

    monkeypatch.setattr(flat, "score", spy)
    torch.set_float32_matmul_precision("medium")
    try:
        assert leak.fits(build("llama", GROUPED))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["ieee"]


def test_an_inherited_precision_stays_inherited():
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in (torch.backends, *backends)]
    try:
        torch.backends.fp32_precision = "tf32"
        for backend in backends:
            backend.fp32_precision = "none"
        with leak.full_precision():
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
        torch.backends.fp32_precision = "ieee"
        assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
    finally:
        for backend, precision in zip((torch.backends, *backends), before, strict=True):
            backend.fp32_precision = precision
