"""How a server in another process gets the policy's weights: through a directory that both can read."""

import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_align.models.export import save_pretrained_dir
from lit_align.models.whole_weights import whole_weights
from lit_align.rollouts.http_json import JsonClient
from lit_align.runtime.agreement import is_zero, of_zero, together
from lit_align.scoring.adapters import has_adapters
from lit_align.scoring.policy import Policy


class WeightHandover(ABC):
    """Writes the weights, and tells the server.

    Args:
        folder: where they are written; the server reads it under ``server_folder``.
        server_folder: the same directory, as the server's machine names it, where that is another name.
    """

    def __init__(self, folder: str, server_folder: str | None = None) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.server_folder = server_folder or str(self.folder)
        #: Tells the versions of this run from those of another on the same server; drawn at the first call.
        self.run: str | None = None

    def __call__(self, policy: Policy, version: int, client: JsonClient) -> str | None:
        """Hand the weights over. All processes call this; the first one writes and tells.

        Args:
            policy: with its new weights.
            version: counts up with them.
            client: of the server.

        Returns:
            The name that the server knows the new weights by; ``None`` for the one it had.

        Raises:
            FailedElsewhere: the first process could not; it raises what stopped it.
        """
        self.check(policy)
        if self.run is None:
            self.run = of_zero(secrets.token_hex(4))
        whole = whole_weights([policy.model])
        with together(f"it handed version {version} of the weights to {client.url}"):
            if is_zero():
                self.write(policy.model, version, whole)
                self.tell(version, client)
        return self.name(version)

    @abstractmethod
    def check(self, policy: Policy) -> None:
        """Raise where the policy cannot be handed over like this."""

    @abstractmethod
    def write(self, model: nn.Module, version: int, whole: Mapping[nn.Module, dict[str, Tensor]]) -> None:
        """Write a version into the folder.

        Args:
            model: the policy's.
            version: counts up.
            whole: its weights, where it holds only a part of them itself.
        """

    @abstractmethod
    def tell(self, version: int, client: JsonClient) -> None:
        """Let the server read a version."""

    def name(self, version: int) -> str | None:
        """What the server calls it."""
        return None


class AdapterHandover(WeightHandover):
    """The policy's LoRA adapter, loaded by vLLM beside its base under a new name each time.

    vLLM needs ``--enable-lora``, ``--max-lora-rank`` of at least the adapter's, and the environment variable
    ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``. A new name is a new cache of prompts, so that none made with
    old weights is used. No name comes twice, not in a resumed run either, since a server that knows a name
    keeps the weights it had under it. The version before the last is unloaded and deleted; the last two of
    a run that has ended stay.

    Args:
        folder: see :class:`WeightHandover`.
        server_folder: see :class:`WeightHandover`.
        prefix: of the adapters' names.
    """

    def __init__(self, folder: str, server_folder: str | None = None, prefix: str = "lit-align") -> None:
        super().__init__(folder, server_folder)
        self.prefix = prefix
        self._loaded: list[int] = []

    def check(self, policy: Policy) -> None:
        """Raise where there is no adapter.

        Raises:
            ValueError: there is none.
        """
        if not has_adapters(policy.model):
            raise ValueError(
                "AdapterHandover: the policy has no adapter; give it LoRA, or use CheckpointHandover"
            )

    def write(self, model: nn.Module, version: int, whole: Mapping[nn.Module, dict[str, Tensor]]) -> None:
        """Write the adapter into a directory of its own."""
        save_pretrained_dir(model, None, self.folder / self.name(version), whole=whole)

    def name(self, version: int) -> str:
        """What the server calls it."""
        return f"{self.prefix}-{self.run}-{version}"

    def tell(self, version: int, client: JsonClient) -> None:
        """Load this version, and unload the one before the last."""
        path = f"{self.server_folder.rstrip('/')}/{self.name(version)}"
        client.post("/v1/load_lora_adapter", {"lora_name": self.name(version), "lora_path": path})
        self._loaded.append(version)
        while len(self._loaded) > 2:
            old = self._loaded.pop(0)
            client.post("/v1/unload_lora_adapter", {"lora_name": self.name(old)})
            shutil.rmtree(self.folder / self.name(old))


class CheckpointHandover(WeightHandover):
    """All weights, written over the directory that the server was started with, which it then reads again.

    What makes a server read again is its own affair. The default asks vLLM in its development mode
    (``VLLM_SERVER_DEV_MODE=1``) to reload the weights in every worker, and to forget the prompts that it
    cached with the old ones. Another server takes other requests.

    Args:
        folder: the directory the server was started with.
        server_folder: see :class:`WeightHandover`.
        requests: path and body of each request that follows a write, in order.
    """

    def __init__(
        self,
        folder: str,
        server_folder: str | None = None,
        requests: Sequence[tuple[str, dict[str, Any]]] = (
            ("/collective_rpc", {"method": "reload_weights"}),
            ("/reset_prefix_cache", {}),
        ),
    ) -> None:
        super().__init__(folder, server_folder)
        self.requests = [(path, dict(body)) for path, body in requests]

    def check(self, policy: Policy) -> None:
        """Raise where the weights are not all in the model.

        Raises:
            ValueError: only an adapter would be written.
        """
        if has_adapters(policy.model):
            raise ValueError("CheckpointHandover: the policy has an adapter; use AdapterHandover")

    def write(self, model: nn.Module, version: int, whole: Mapping[nn.Module, dict[str, Tensor]]) -> None:
        """Put the weights in the place of the old ones; the tokenizer beside them stays."""
        new = self.folder.with_name(f".{self.folder.name}.next")
        save_pretrained_dir(model, None, new, whole=whole)
        self.folder.mkdir(parents=True, exist_ok=True)
        names = {file.name for file in new.iterdir()}
        for file in self.folder.glob("*.safetensors*"):
            if file.name not in names:
                file.unlink()  # of a cut into more files
        for name in names:
            os.replace(new / name, self.folder / name)
        new.rmdir()

    def tell(self, version: int, client: JsonClient) -> None:
        """Let the server read the folder again."""
        for path, body in self.requests:
            client.post(path, body)
