"""Sparse gradients of an embedding against AdamW on the whole matrix."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForSequenceClassification

from lit_align import RewardModel
from lit_align.algorithms.clipping import clip_in_step, forget_scale
from lit_align.algorithms.optim import OptimConfig, build_optimizer
from lit_align.algorithms.row_adamw import RowAdamW, check_trainer
from lit_align.batches import Forest

ROWS, WIDTH = 40, 8
#: Row 3 comes back, row 9 has a gradient once and moves on without, 30 and others never have one.
STEPS = [[3, 9, 3], [4], [3, 5], [6, 7, 4]]
MANY = [list(range(i, 30, 2)) for i in range(2)]


def embedding(sparse: bool) -> nn.Embedding:
    generator = torch.Generator().manual_seed(0)
    found = nn.Embedding(ROWS, WIDTH, sparse=sparse)
    found.weight.data = torch.randn(ROWS, WIDTH, generator=generator)
    return found


def step(layer: nn.Embedding, optimizer: AdamW, ids: list[int], seed: int) -> None:
    outer = torch.randn(len(ids), WIDTH, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (layer(torch.tensor(ids)) * outer).sum().backward()
    if layer.weight.grad.is_sparse:
        layer.weight.grad = layer.weight.grad.coalesce()
    assert clip_in_step(optimizer, 0.5, "norm", "32-true")
    optimizer.step()
    forget_scale(optimizer)


@pytest.mark.parametrize("steps", [STEPS, MANY], ids=["few rows", "most rows"])
def test_steps_are_those_of_the_whole_matrix(steps):
    rows, whole = embedding(True), embedding(False)
    ours = RowAdamW(rows.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    theirs = AdamW(whole.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    for seed, ids in enumerate(steps):
        step(rows, ours, ids, seed)
        step(whole, theirs, ids, seed)
        torch.testing.assert_close(rows.weight, whole.weight, rtol=1e-6, atol=1e-7)
    for name, value in theirs.state[whole.weight].items():
        torch.testing.assert_close(ours.state[rows.weight][name], value, rtol=1e-6, atol=1e-9)
    assert torch.equal(rows.weight[30:], embedding(False).weight[30:])


def test_a_state_goes_from_one_to_the_other_and_back():
    rows, whole = embedding(True), embedding(False)
    ours = RowAdamW(rows.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    theirs = AdamW(whole.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    step(rows, ours, STEPS[0], 0)
    step(whole, theirs, STEPS[0], 0)
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    theirs.load_state_dict(ours_state)
    ours.load_state_dict(theirs_state)
    step(rows, ours, STEPS[1], 1)
    step(whole, theirs, STEPS[1], 1)
    # Row 9 has no gradient now, and still moves.
    torch.testing.assert_close(rows.weight, whole.weight, rtol=1e-6, atol=1e-7)


def trained(sparse: bool, **options) -> tuple[list[float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_labels=1,
    )
    model = LlamaForSequenceClassification(config)
    module = RewardModel(
        model, lr=1e-2, optim=OptimConfig(schedule="constant", sparse_embedding=sparse, **options)
    )
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 600, (8, 3, 6), generator=generator).tolist()
    batches = [
        Forest.from_lists([row[0] for row in ids[i : i + 2]], [[row[1], row[2]] for row in ids[i : i + 2]])
        for i in range(0, 8, 2)
    ]
    losses: list[float] = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Losses()],
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return losses, {name: p.detach() for name, p in module.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"micro_batch_tokens": 20}], ids=["whole", "in parts"])
def test_a_run_is_the_same_run(options):
    losses, weights = trained(True, **options)
    wanted_losses, wanted = trained(False)
    assert losses == pytest.approx(wanted_losses, abs=1e-5)
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-4)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = embedding(False)
        self.head = nn.Linear(WIDTH, ROWS, bias=False)
        self.head.weight = self.inside.weight


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Sequential(embedding(False)), {"weight_decay": 0.1}, "every row shrinks"),
        (nn.Sequential(embedding(False)), {"name": "torch.optim.SGD"}, "goes with torch.optim.AdamW"),
        (nn.Sequential(embedding(False)), {"extra": {"amsgrad": True}}, "not amsgrad"),
        (nn.Linear(2, 2), {}, "no plain embedding is trained"),
        (Tied(), {}, "tied to another layer"),
    ],
)
def test_what_is_refused(module, options, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(module, OptimConfig(sparse_embedding=True, **options), 0.1)


def test_clipping_by_value_is_refused():
    trainer = L.Trainer(
        gradient_clip_val=1.0, gradient_clip_algorithm="value", accelerator="cpu", logger=False
    )
    with pytest.raises(ValueError, match="clipping by value"):
        check_trainer(trainer)
