"""JSON over HTTP to a server that may be slow, busy or away, with errors that say which."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from lit_align.runtime import trust


class ServerError(RuntimeError):
    """The server did not do what it was asked for."""


class ServerUnreachableError(ServerError):
    """No answer, or none in time, however often it was asked."""


class ServerRefusedError(ServerError):
    """The server understood, and said no: asking again would not help."""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """A status of 3xx is an error: the key in the headers would go along, and the body would not."""


def open_here(request: urllib.request.Request, timeout: float) -> Any:
    """The response to a request, from its own address and no other.

    Args:
        request: to a server.
        timeout: seconds.

    Raises:
        urllib.error.HTTPError: the status is an error, or names another address.
        OSError: no connection, or no answer in time.
    """
    return urllib.request.build_opener(_Stay).open(request, timeout=timeout)


class JsonClient:
    """Posts JSON to a server, again where that may help.

    Args:
        url: of the server, with http:// or https://.
        timeout: seconds that one answer may take.
        attempts: how often a request is made where the connection fails, time is up, or the server is busy
            (status 429) or in trouble (5xx).
        pause: seconds before the second attempt; each further one waits twice as long.
        key_variable: environment variable with the key that the server wants, if it wants one; on the
            command line its name begins with ``LIT_ALIGN_KEY``.
        key_needed: whether it is an error that the environment has no such variable; else none is sent.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 600.0,
        attempts: int = 5,
        pause: float = 1.0,
        key_variable: str | None = None,
        key_needed: bool = True,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}; it must begin with http:// or https://")
        trust.check_key(key_variable)
        if attempts < 1:
            raise ValueError(f"attempts is {attempts}; it must be at least 1")
        self.url = url.rstrip("/")
        self.timeout, self.attempts, self.pause = timeout, attempts, pause
        self.key_variable, self.key_needed = key_variable, key_needed

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Post a request.

        Args:
            path: with its leading slash.
            body: is sent as JSON.

        Returns:
            The answer, decoded where it is JSON, else its text.

        Raises:
            ServerRefusedError: another 4xx status than 429.
            ServerUnreachableError: no attempt was answered.
        """
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}: {error.read(500).decode(errors='replace').strip()}"
                if error.code != 429 and error.code < 500:
                    raise ServerRefusedError(f"{self.url}{path} refuses with {reason}") from error
            except (OSError, http.client.HTTPException) as error:  # no connection, a broken one, or no time
                reason = f"{type(error).__name__}: {error}"
        raise ServerUnreachableError(
            f"{self.url}{path} gave no answer in {self.attempts} attempts of {self.timeout:g} s "
            f"(the last: {reason}); is the server running, and is this its address?"
        )

    def _once(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.key_variable is not None:
            key = os.environ.get(self.key_variable)
            if key:
                headers["Authorization"] = f"Bearer {key}"
            elif self.key_needed:
                raise ValueError(f"the environment has no {self.key_variable}, which holds the server's key")
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with open_here(request, self.timeout) as response:
            text = response.read().decode()
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text  # some endpoints answer in words
