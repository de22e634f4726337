import logging

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from lit_align.callbacks import ExactResume


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.draws: list[float] = []

    def training_step(self, batch, batch_idx):
        self.draws.append(torch.rand(()).item())
        return self.net(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.ones(6, 1)


class Own(DataLoader):
    pass


def trainer(tmp_path, resume, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=tmp_path, callbacks=[resume], **(quiet | options))


def loader():
    return DataLoader(torch.arange(8.0)[:, None], batch_size=2, shuffle=True)


def test_the_state_is_a_few_plain_numbers(tmp_path):
    resume = ExactResume(seed=3)
    fit = trainer(tmp_path, resume, max_steps=5)
    fit.fit(Linear(), loader())
    state = resume.state_dict()
    assert (state["epoch"], state["rows"], state["batches"], state["seed"]) == (1, 2, 1, 3)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["callbacks"]["ExactResume"] == state
    assert "rng" not in str(saved).lower()


@pytest.mark.parametrize("kind", ["stream", "loader of its own", "overfit_batches"])
def test_what_cannot_be_resumed_is_said_and_still_trains(tmp_path, caplog, kind):
    given = DataLoader(Stream(), batch_size=2) if kind == "stream" else loader()
    if kind == "loader of its own":
        given = Own(torch.ones(6, 1), batch_size=2)
    options = {"overfit_batches": 2} if kind == "overfit_batches" else {}
    with caplog.at_level(logging.WARNING):
        first, second = Linear(), Linear()
        for module in (first, second):
            trainer(tmp_path, ExactResume(seed=3), max_epochs=2, **options).fit(module, given)
    assert "the order of the data cannot be resumed" in caplog.text
    # Randomness is exact all the same.
    assert first.draws == second.draws
    assert len(set(first.draws)) == len(first.draws)


def test_what_is_resumed_exactly_is_not_warned_about(tmp_path, recwarn):
    for steps, path in ((2, None), (3, tmp_path / "a.ckpt")):
        fit = trainer(tmp_path, ExactResume(), max_steps=steps)
        fit.fit(Linear(), loader(), ckpt_path=path)
        fit.save_checkpoint(tmp_path / "a.ckpt")
    assert not [w for w in recwarn if "not resumable" in str(w.message)]


def test_the_seed_is_that_of_seed_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    resume = ExactResume()
    trainer(tmp_path, resume, max_steps=1).fit(Linear(), loader())
    assert resume.state_dict()["seed"] == 11


def test_a_checkpoint_without_the_callback_is_told(tmp_path, caplog):
    plain = trainer(tmp_path, L.Callback(), max_steps=2)
    plain.fit(Linear(), loader())
    plain.save_checkpoint(tmp_path / "a.ckpt")
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, ExactResume(), max_steps=3).fit(Linear(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert "written without ExactResume" in caplog.text


def test_two_fits_of_one_trainer_go_on(tmp_path):
    resume, module = ExactResume(seed=3), Linear()
    fit = trainer(tmp_path, resume, max_epochs=1)
    fit.fit(module, loader())
    fit.fit_loop.max_epochs = 2
    fit.fit(module, loader())
    once = Linear()
    trainer(tmp_path, ExactResume(seed=3), max_epochs=2).fit(once, loader())
    assert module.draws == once.draws
    assert resume.state_dict()["epoch"] == 2
    assert ExactResume().state_dict() == {}


def test_wrong_arguments():
    with pytest.raises(ValueError, match="choose error or restart"):
        ExactResume(on_changed="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "told"), [(ConnectionResetError, True), (EOFError, True), (KeyError, False)]
)
def test_a_broken_connection_to_a_worker_is_explained(error, told):
    callback = ExactResume()
    for workers in (2, 0):
        callback._workers = workers
        raised = error("peer")
        callback.on_exception(None, None, raised)
        notes = "".join(getattr(raised, "__notes__", ()))
        assert ("DataLoader worker" in notes) == (told and workers > 0)
