"""The gradient of a tied weight in one buffer, against autograd's sum of two."""

import pytest
import torch
from torch import nn

from lit_align.batches import Forest
from lit_align.outputs import LossOutput, Scores
from lit_align.scoring.blocks import blocks
from lit_align.scoring.head import Head, head_loss
from lit_align.scoring.head_gradient import HeadGradient, SharedEmbedding, TiedEmbedding, embedding_joins

VOCABULARY, WIDTH = 11, 4


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, dtype=torch.float64, **options)

    def get_input_embeddings(self):
        return self.embedding


def batch(seed: int = 0) -> Forest:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (4, 6), generator=generator).tolist()
    return Forest.from_lists([row[:2] for row in ids], [[row[2:]] for row in ids])


def nll(scores: Scores, batch: Forest) -> LossOutput:
    return LossOutput(-(scores.logps * batch.weights).sum(), batch.weights.sum(), {})


def run(model, forest: Forest, gradient: HeadGradient) -> torch.Tensor:
    weight = model.embedding.weight
    with embedding_joins(model, weight, gradient):
        states = torch.tanh(model.embedding(forest.completion_ids.flip(0)))
    parts = blocks(forest, torch.arange(len(forest.completion_ids)), 5)
    return head_loss(states, Head(weight), forest.completion_ids, parts, nll, gradient=gradient).total


def plain(model, forest: Forest) -> torch.Tensor:
    states = torch.tanh(nn.Embedding.forward(model.embedding, forest.completion_ids.flip(0)))
    logps = (states @ model.embedding.weight.T).log_softmax(-1)
    return -logps.gather(1, forest.completion_ids[:, None]).sum()


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("padding", [None, 3])
def test_one_pass(scale, padding):
    model = Model(padding_idx=padding)
    (scale * plain(model, batch())).backward()
    expected, model.embedding.weight.grad = model.embedding.weight.grad, None
    gradient = HeadGradient()
    (scale * run(model, batch(), gradient)).backward()
    torch.testing.assert_close(model.embedding.weight.grad, expected, rtol=1e-10, atol=1e-12)
    assert gradient.buffer is None, "who holds it makes autograd copy it"
    assert type(model.embedding) is nn.Embedding


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_three_passes_into_one_buffer(scale):
    model, forests = Model(), [batch(seed) for seed in range(3)]
    sum(scale * plain(model, f) for f in forests).backward()
    expected, model.embedding.weight.grad = model.embedding.weight.grad, None
    gradient = HeadGradient()
    for i, forest in enumerate(forests):
        gradient.last = i == 2
        (scale * run(model, forest, gradient)).backward()
        assert (model.embedding.weight.grad is None) == (i < 2)
    torch.testing.assert_close(model.embedding.weight.grad, expected, rtol=1e-10, atol=1e-12)


def test_gradients_add_to_those_of_the_micro_batch_before():
    model = Model()
    (plain(model, batch()) + plain(model, batch(1))).backward()
    expected, model.embedding.weight.grad = model.embedding.weight.grad, None
    for seed in (0, 1):
        run(model, batch(seed), HeadGradient()).backward()
    torch.testing.assert_close(model.embedding.weight.grad, expected, rtol=1e-10, atol=1e-12)


def test_an_embedding_whose_head_took_no_part_has_a_gradient_of_its_own():
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[1, 1, 2]])
    assert torch.autograd.gradcheck(lambda w: TiedEmbedding.apply(ids, w, 2, HeadGradient())[:, :2], weight)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_special_embeddings_and_foreign_weights_are_left_alone(options):
    model = Model(**options)
    with embedding_joins(model, model.embedding.weight, HeadGradient()):
        assert type(model.embedding) is nn.Embedding
    model = Model()
    with embedding_joins(model, nn.Parameter(torch.zeros(1)), HeadGradient()):
        assert type(model.embedding) is nn.Embedding
    with embedding_joins(model, model.embedding.weight, HeadGradient()):
        assert type(model.embedding) is SharedEmbedding


def test_the_buffer_becomes_the_gradient_without_a_copy():
    model = Model()
    seen = []
    original = HeadGradient.hand_over

    class Watched(HeadGradient):
        def hand_over(self, found, scale, dtype):
            seen.append(found.data_ptr())
            return original(self, found, scale, dtype)

    run(model, batch(), Watched()).backward()
    assert seen == [model.embedding.weight.grad.data_ptr()]
