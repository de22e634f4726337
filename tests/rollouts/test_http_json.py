"""What a client does with answers that are none; with a real server see test_server.py."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from lit_align.rollouts import http_json
from lit_align.rollouts.http_json import JsonClient, ServerRefusedError, ServerUnreachableError


def test_waits_double(monkeypatch):
    waited = []
    monkeypatch.setattr(http_json.time, "sleep", waited.append)
    with pytest.raises(ServerUnreachableError, match="in 4 attempts of 1 s"):
        JsonClient("http://127.0.0.1:9/", timeout=1, attempts=4, pause=0.5).post("/x", {})
    assert waited == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("url", ["localhost", "ftp://x", ""])
def test_addresses(url):
    with pytest.raises(ValueError, match="must begin with http"):
        JsonClient(url)


class Endpoint(BaseHTTPRequestHandler):
    """Breaks off its first reply to /torn, and sends /moved elsewhere."""

    seen: ClassVar[list[str]] = []

    def do_POST(self):
        self.seen.append(self.path)
        self.send_response(302 if self.path == "/moved" else 200)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"4" if self.seen.count("/torn") == 1 else b"42")

    def do_GET(self):
        self.seen.append(f"GET {self.path}")
        self.send_response(404)
        self.end_headers()

    def log_message(self, *arguments):
        return


@pytest.fixture
def client():
    Endpoint.seen = []
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield JsonClient(f"http://127.0.0.1:{server.server_address[1]}", timeout=10, pause=0.0)
    server.shutdown()
    server.server_close()


def test_a_reply_that_breaks_off_is_asked_for_again(client):
    assert client.post("/torn", {}) == 42
    assert Endpoint.seen == ["/torn", "/torn"]


def test_nothing_goes_to_another_address(client):
    with pytest.raises(ServerRefusedError, match="status 302"):
        client.post("/moved", {})
    assert Endpoint.seen == ["/moved"]
