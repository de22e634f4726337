"""A judge behind an endpoint: a small server on this machine answers as one would."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lit_align.callbacks import EndpointJudge
from lit_align.rollouts import http_json


class Endpoint:
    """Prefers the longer answer; ``statuses`` are used up one a request, before it judges."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        self.statuses: list[int] = []
        #: Replies that break off in the middle.
        self.torn = 0
        self.reply: Callable[[str], str] = longer
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((self.path, body, self.headers.get("Authorization")))
                status = endpoint.statuses.pop(0) if endpoint.statuses else 200
                content = endpoint.reply(body["messages"][0]["content"])
                answer = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                data = json.dumps(answer if status == 200 else {"error": "the key is wrong"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                endpoint.torn -= 1
                self.wfile.write(data[:10] if endpoint.torn >= 0 else data)

            def do_GET(self) -> None:
                endpoint.requests.append((self.path, {}, self.headers.get("Authorization")))
                self.send_response(404)
                self.end_headers()

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def longer(question: str) -> str:
    first, second = (part.split("\n\n")[0] for part in question.split("]\n")[2:4])
    better = "C" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f"I thought of [[A]] and [[B]].\n[[{better}]]"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    found = Endpoint()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()


def judge_of(endpoint: Endpoint, **options: Any) -> EndpointJudge:
    return EndpointJudge(endpoint.url, "m", pause=0.0, **options)


def test_a_reply_that_breaks_off_is_asked_for_again(endpoint: Endpoint) -> None:
    endpoint.torn = 1
    assert judge_of(endpoint)(["One"], ["long"], ["no"]) == [1.0]
    assert len(endpoint.requests) == 2


def test_a_key_goes_to_no_other_address(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_ALIGN_KEY", "secret")
    endpoint.statuses = [302]
    with pytest.raises(ValueError, match="status 302"):
        judge_of(endpoint)(["One"], ["long"], ["no"])
    assert [path for path, *_ in endpoint.requests] == ["/v1/chat/completions"]


PROMPTS: list[Any] = ["One", [{"role": "user", "content": "Blue"}], "Three"]


def test_verdicts(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_ALIGN_KEY", "secret")
    judge = judge_of(endpoint)
    assert judge(PROMPTS, ["long", "a", "abc"], ["no", "bcd", "xyz"]) == [1.0, 0.0, 0.5]
    assert {path for path, _, _ in endpoint.requests} == {"/v1/chat/completions"}
    assert {key for _, _, key in endpoint.requests} == {"Bearer secret"}
    (asked,) = [b for _, b, _ in endpoint.requests if "Blue" in b["messages"][0]["content"]]
    assert (asked["model"], asked["temperature"]) == ("m", 0)
    assert "[Prompt]\nuser: Blue\n" in asked["messages"][0]["content"]


def test_completions_that_look_like_places_stay_what_they_are(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIT_ALIGN_KEY", raising=False)
    judge_of(endpoint)(["{first}"], ["{second} {0}"], ["}"])
    ((_, body, key),) = endpoint.requests
    assert (
        "[Prompt]\n{first}\n\n[Answer A]\n{second} {0}\n\n[Answer B]\n}\n" in body["messages"][0]["content"]
    )
    assert key is None


def test_an_overloaded_endpoint_is_asked_again(endpoint: Endpoint) -> None:
    endpoint.statuses = [503, 429]
    assert judge_of(endpoint, parallel=1)(["One"], ["long"], ["no"]) == [1.0]
    assert len(endpoint.requests) == 3


def test_no_verdict_is_left_out_and_told(endpoint: Endpoint) -> None:
    endpoint.reply = lambda question: "I cannot say." if "Blue" in question else longer(question)
    with pytest.warns(UserWarning, match="1 of 2 pairs have no verdict .no verdict in 'I cannot say"):
        assert judge_of(endpoint)(PROMPTS[:2], ["long", "x"], ["no", "y"]) == [1.0, None]
    endpoint.reply, endpoint.statuses = longer, [500, 500, 500]
    with pytest.warns(UserWarning, match="status 500"):
        assert judge_of(endpoint)(["One"], ["long"], ["no"]) == [None]


def test_a_slow_or_absent_endpoint_is_left_out(endpoint: Endpoint) -> None:
    judge = judge_of(endpoint, attempts=1)
    assert judge.check() is None
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.warns(UserWarning, match=r"URLError|refused"):
        assert judge(["One"], ["a"], ["b"]) == [None]
    with pytest.raises(ValueError, match="gives no verdict"):
        judge.check()


def test_a_wrong_key_stops(endpoint: Endpoint) -> None:
    endpoint.statuses = [401]
    with pytest.raises(ValueError, match=r"status 401: .*the key is wrong"):
        judge_of(endpoint)(["One"], ["a"], ["b"])
    assert len(endpoint.requests) == 1


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        EndpointJudge("localhost", "m")
    with pytest.raises(ValueError, match=r"template has no \{second\}"):
        EndpointJudge("http://x", "m", template="{prompt} {first}")
    with pytest.raises(ValueError, match="attempts is 0"):
        EndpointJudge("http://x", "m", attempts=0)
    with pytest.raises(ValueError, match="parallel is 0"):
        EndpointJudge("http://x", "m", parallel=0)


def test_it_waits_and_asks_again_as_every_client_does(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(http_json.time, "sleep", waited.append)
    with pytest.warns(UserWarning, match="no answer in 4 attempts"):
        assert EndpointJudge("http://127.0.0.1:9", "m", attempts=4, pause=0.5)(["One"], ["a"], ["b"]) == [
            None
        ]
    assert waited == [0.5, 1.0, 2.0]


def test_an_answer_that_is_no_reply_is_left_out_and_told(endpoint: Endpoint) -> None:
    class Words:
        url = endpoint.url

        def post(self, path: str, body: dict[str, Any]) -> str:
            return "come back tomorrow"

    judge = judge_of(endpoint)
    judge._client = Words()  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="no reply of an assistant in 'come back tomorrow'"):
        assert judge(["One"], ["a"], ["b"]) == [None]
