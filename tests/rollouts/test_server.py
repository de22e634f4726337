"""A generator over HTTP, against a small real server that serves a tiny model."""

import copy

import pytest
import torch
from torch import nn

from lit_align.rollouts.generator import Generator
from lit_align.rollouts.http_json import ServerError, ServerRefusedError, ServerUnreachableError
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.server import ServerGenerator, read_answer
from lit_align.scoring.policy import Policy
from tests.rollouts.small_server import SmallServer, serving
from tests.scoring.architectures import GROUPED, build

PROMPTS = [[5, 6, 7], [8], [9, 10]]
REQUEST = {"completions": 2, "seeds": [2**63 + 5, 2, 3, 4, 5, 6]}


@pytest.fixture
def server():
    return SmallServer(build("llama", GROUPED))


@pytest.fixture
def url(server):
    with serving(server) as address:
        yield address


@pytest.fixture
def policy(server):
    return Policy(copy.deepcopy(server.policy.model))


def test_it_is_a_generator():
    assert isinstance(ServerGenerator("http://localhost", "base"), Generator)


@pytest.mark.parametrize("as_text", [False, True])
def test_completions_are_the_servers(server, url, policy, as_text):
    server.ids_as_text = as_text
    sampling = Sampling(
        12, 2, top_k=20, min_p=0.01, repetition_penalty=1.1, stop_token_ids=[9], shortest_limit=4
    )
    ours = ServerGenerator(url, "base", parallel=3).generate(
        policy, None, PROMPTS, sampling=sampling, **REQUEST
    )
    here = NativeGenerator().generate(
        policy, None, PROMPTS, sampling=sampling, completions=2, seeds=[s % 2**63 for s in REQUEST["seeds"]]
    )
    limits = sorted(body["max_tokens"] for body in server.completions)
    assert len(set(limits)) > 1
    assert all(4 <= limit <= 12 for limit in limits)
    for (given, written, _), (prompt, local, _) in zip(ours.sequences(), here.sequences(), strict=True):
        assert given == prompt
        # The limit is drawn from the seed as it was given.
        shared = min(len(written), len(local))
        assert written[:shared] == local[:shared]
    ends = [written[-1] in (2, 9) for _, written, _ in ours.sequences()]
    assert ours.completion_columns["finished"].tolist() == ends
    assert ours.weights.tolist() == [1.0] * len(ours.completion_ids)


def test_log_probs_are_the_servers_and_not_the_trainers(server, url, policy):
    """The gap that algorithms correct for: here the server's weights are a little off."""
    with torch.no_grad():
        for parameter in server.policy.parameters():
            parameter.mul_(1.02)
    forest = ServerGenerator(url, "base").generate(policy, None, PROMPTS, sampling=Sampling(8), **REQUEST)
    with torch.no_grad():
        theirs, own = server.policy(forest).logps, policy(forest).logps
    torch.testing.assert_close(forest.token_columns["old_logps"], theirs, rtol=1e-3, atol=1e-4)
    assert (forest.token_columns["old_logps"] - own).abs().max() > 1e-2


def test_values_are_the_policys(url, policy):
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 1), nn.Flatten(0)).train()
    forest = ServerGenerator(url, "base").generate(
        policy, None, PROMPTS, sampling=Sampling(6), value_head=head, **REQUEST
    )
    local = NativeGenerator().generate(
        policy,
        None,
        PROMPTS,
        sampling=Sampling(6),
        completions=2,
        seeds=[s % 2**63 for s in REQUEST["seeds"]],
        value_head=head,
    )
    assert torch.equal(forest.completion_ids, local.completion_ids)
    expected = local.token_columns["values"]
    torch.testing.assert_close(forest.token_columns["values"], expected, rtol=1e-3, atol=1e-4)
    assert head.training


def test_temperature_and_log_probs_have_to_agree(server, url, policy):
    request = {"sampling": Sampling(4, temperature=0.7), **REQUEST}
    with pytest.raises(ValueError, match="logprobs-mode processed_logprobs"):
        ServerGenerator(url, "base").generate(policy, None, PROMPTS, **request)
    forest = ServerGenerator(url, "base", logprobs="processed").generate(policy, None, PROMPTS, **request)
    with torch.no_grad():
        expected = policy(forest, temperature=0.7).logps
    torch.testing.assert_close(forest.token_columns["old_logps"], expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="logprobs is 'cooked'"):
        ServerGenerator(url, "base", logprobs="cooked")


def ask(url, policy, **options):
    generator = ServerGenerator(
        url, **{"model": "base", "pause": 0.01, "parallel": 1, "attempts": 3} | options
    )
    return generator.generate(
        policy, None, [[5]], completions=1, sampling=Sampling(4), seeds=[1]
    ).completion_ids


def test_a_busy_server_is_asked_again_and_says_the_same(server, url, policy):
    expected = ask(url, policy)
    server.troubles = [503, 429]
    assert torch.equal(ask(url, policy), expected)
    server.troubles = [500, 503, 502]
    with pytest.raises(ServerUnreachableError, match=r"no answer in 3 attempts .*status 502: .*no luck"):
        ask(url, policy)


def test_a_refusal_is_told_at_once(server, url, policy):
    with pytest.raises(ServerRefusedError, match=r"status 404: .*`other` does not exist"):
        ask(url, policy, model="other")
    assert len(server.requests) == 1


def test_a_server_that_is_away(policy):
    with pytest.raises(
        ServerUnreachableError, match=r"2 attempts .*Connection refused.*is the server running"
    ):
        ask("http://127.0.0.1:9", policy, attempts=2)


def test_a_key(server, url, policy, monkeypatch):
    server.key = "secret"
    with pytest.raises(ServerRefusedError, match="status 401"):
        ask(url, policy)
    with pytest.raises(ValueError, match="the environment has no ROLLOUT_KEY"):
        ask(url, policy, key_variable="ROLLOUT_KEY")
    monkeypatch.setenv("ROLLOUT_KEY", "secret")
    assert len(ask(url, policy, key_variable="ROLLOUT_KEY"))


def test_a_slow_server_runs_out_of_time(server, url, policy):
    with server._lock, pytest.raises(ServerUnreachableError, match=r"timed out|TimeoutError"):
        ask(url, policy, timeout=0.2, attempts=1)


def choice(**changes):
    logprobs = {"tokens": ["token_id:5", "token_id:2"], "token_logprobs": [-1.0, -2.0]}
    return {"choices": [{"finish_reason": "stop", "logprobs": logprobs, "token_ids": [5, 2], **changes}]}


def test_answers():
    assert read_answer(choice(), frozenset({2}), Sampling()) == ([5, 2], [-1.0, -2.0], True)
    cut_off = choice(finish_reason="length", token_ids=None)
    assert read_answer(cut_off, frozenset({2}), Sampling()) == ([5, 2], [-1.0, -2.0], False)
    # A stop text may end in any token.
    assert read_answer(choice(token_ids=[5, 6]), frozenset({2}), Sampling(stop=["x"])).finished


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Hello", "no token ids with log-probs"),
        ({"choices": []}, "no token ids with log-probs"),
        (choice(logprobs=None), "no token ids with log-probs"),
        (choice(token_ids=None, logprobs={"tokens": ["a"], "token_logprobs": [0.0]}), "no token ids"),
        (choice(token_ids=[5]), "1 tokens with 2 log-probs"),
        (choice(token_ids=[5, 6]), "ended a completion with token 6, which is no end here"),
    ],
)
def test_answers_that_are_none(answer, expected):
    with pytest.raises(ServerError, match=expected):
        read_answer(answer, frozenset({2}), Sampling())


def test_addresses_and_numbers():
    with pytest.raises(ValueError, match="must begin with http"):
        ServerGenerator("localhost:8000", "base")
    with pytest.raises(ValueError, match="parallel is 0"):
        ServerGenerator("http://localhost", "base", parallel=0)
    with pytest.raises(ValueError, match="attempts is 0"):
        ServerGenerator("http://localhost", "base", attempts=0)
