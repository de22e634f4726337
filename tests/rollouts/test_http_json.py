"""What a client does with answers that are none; with a real server see test_server.py."""

import pytest

from lit_align.rollouts import http_json
from lit_align.rollouts.http_json import JsonClient, ServerUnreachableError


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
