"""A small completions server: HTTP on loopback, a tiny model that samples, vLLM's way with adapters."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.policy import Policy


class SmallServer:
    """Serves a model under the name ``base``, and adapters of it under theirs.

    Attributes:
        requests: path and body of all that were answered.
        troubles: statuses that the next requests are answered with instead.
    """

    def __init__(self, model: Any, directory: Path | None = None) -> None:
        self.policy, self.directory = Policy(model), directory
        self.adapters: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.troubles: list[int] = []
        self.ids_as_text = False
        self.key: str | None = None
        self._lock = threading.Lock()

    @property
    def completions(self) -> list[dict[str, Any]]:
        return [body for path, body in self.requests if path == "/v1/completions"]

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self._lock:
            self.requests.append((path, body))
            if self.troubles:
                return self.troubles.pop(0), {"error": "no luck"}
            if path == "/v1/load_lora_adapter":
                return self._load(body["lora_name"], body["lora_path"])
            if path == "/v1/unload_lora_adapter":
                del self.adapters[body["lora_name"]]
                return 200, "Success"
            if path == "/reload":
                return self._reload()
            if path == "/v1/completions":
                return self._complete(body)
            return 404, {"error": f"there is no {path}"}

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in ("base", *self.adapters):
            return 404, {"error": f"The model `{body['model']}` does not exist."}
        policy = self.adapters.get(body["model"], self.policy)
        sampling = Sampling(
            body["max_tokens"],
            body["min_tokens"],
            body["temperature"],
            max(body["top_k"], 0),
            body["top_p"],
            body["min_p"],
            body["repetition_penalty"],
            stop_token_ids=body["stop_token_ids"],
        )
        forest = NativeGenerator().generate(
            policy, None, [body["prompt"]], completions=1, sampling=sampling, seeds=[body["seed"]]
        )
        ids = forest.completion_ids.tolist()
        choice = {
            "finish_reason": "stop" if forest.completion_columns["finished"].item() else "length",
            "logprobs": {
                "tokens": [f"token_id:{token}" for token in ids],
                "token_logprobs": forest.token_columns["old_logps"].tolist(),
            },
        }
        return 200, {"choices": [choice if self.ids_as_text else {**choice, "token_ids": ids}]}

    def _load(self, name: str, path: str) -> tuple[int, Any]:
        import copy

        from peft import PeftModel

        if name in self.adapters:
            return 400, {"error": f"The lora adapter '{name}' has already been loaded."}
        base = copy.deepcopy(self.policy.model)
        self.adapters[name] = Policy(PeftModel.from_pretrained(base, path))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _reload(self) -> tuple[int, Any]:
        from transformers import AutoModelForCausalLM

        assert self.directory is not None
        self.policy = Policy(AutoModelForCausalLM.from_pretrained(self.directory))
        return 200, {}


@contextmanager
def serving(server: SmallServer) -> Iterator[str]:
    """The server's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.key is not None and self.headers["Authorization"] != f"Bearer {server.key}":
                status, found = 401, {"error": "Unauthorized"}
            else:
                status, found = server.answer(self.path, body)
            text = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
