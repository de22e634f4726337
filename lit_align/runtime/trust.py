"""What a configuration may name: dotted paths are checked before anything is imported.

A YAML file from a stranger can name any importable object, and naming one is running it. So the
command line imports only what lies under an allow-list, which ``--trust`` extends. Python is free.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

#: What a configuration may always name.
ALLOWED = (
    "lit_align",
    "lightning",
    "pytorch_lightning",
    "torch.optim",
    "torch.utils.data",
    "torchmetrics",
)

#: What environment variables are called that a configuration may have sent to a server.
KEYS = "LIT_ALIGN_KEY"

_restriction: ContextVar[tuple[str, ...] | None] = ContextVar("lit_align_trust", default=None)


class UntrustedImport(ValueError):
    """A configuration names code that nobody vouched for.

    Attributes:
        hint: how to vouch for it.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"the configuration names {path!r}, which is not on the list of trusted packages")
        package = path.partition(".")[0]
        self.hint = f"if you know what it does, add '--trust {package}'; trusted are {', '.join(ALLOWED)}"


class UntrustedKey(UntrustedImport):
    """A configuration wants a secret sent that was not made for it."""

    def __init__(self, variable: str) -> None:
        ValueError.__init__(
            self, f"the configuration wants the environment variable {variable!r} sent to a server as its key"
        )
        name = f"{KEYS}_{variable}"
        self.hint = f"if that server may have it: export {name}=${variable}, and key_variable: {name}"


@contextmanager
def restricted(extra: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """Within this context, only :data:`ALLOWED` and ``extra`` may be imported by name.

    Args:
        extra: packages or modules that the user vouches for.

    Raises:
        ValueError: an entry of ``extra`` is not a dotted name.
    """
    for entry in extra:
        if not all(part.isidentifier() for part in entry.split(".")):
            raise ValueError(f"trust takes the name of a package or module, not {entry!r}")
    allowed = (*ALLOWED, *extra)
    token = _restriction.set(allowed)
    try:
        yield allowed
    finally:
        _restriction.reset(token)


def load(path: str) -> Any:
    """The object at a dotted path, if it may be imported here.

    Raises:
        UntrustedImport: the path, or the place where the object was defined, is not trusted.
        ValueError: the path leads nowhere.

    >>> load("torch.optim.AdamW").__name__
    'AdamW'
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"{path!r} is not a dotted path (package.module.name)")
    check(path)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from error
    # A trusted module may have imported the name from elsewhere: what counts is where it comes from.
    home = getattr(found, "__module__", None) or getattr(found, "__name__", None)
    if isinstance(home, str):
        check(home)
    return found


def check(path: str) -> None:
    """Refuse a dotted path that may not be imported here.

    Whoever imports a name that came from a configuration calls this first, or :func:`load`. Outside
    of :func:`restricted` everything is allowed.

    Raises:
        UntrustedImport: the path lies under none of the trusted packages.

    >>> check("os.system")
    >>> with restricted():
    ...     try:
    ...         check("os.system")
    ...     except UntrustedImport as error:
    ...         print(error.hint.partition(";")[0])
    if you know what it does, add '--trust os'
    """
    allowed = _restriction.get()
    if allowed is None or any(path == entry or path.startswith(f"{entry}.") for entry in allowed):
        return
    raise UntrustedImport(path)


def check_key(variable: str | None) -> None:
    """Refuse an environment variable that a configuration may not have sent to a server of its choice.

    A file from a stranger could name a token of the user's and an address of its own. So on the command line
    a key is sent only from a variable that was made for it; outside of :func:`restricted` any will do.

    Args:
        variable: its name; ``None`` for none.

    Raises:
        UntrustedKey: its name does not begin with :data:`KEYS`.

    >>> check_key("HF_TOKEN")
    >>> with restricted():
    ...     check_key("LIT_ALIGN_KEY_JUDGE")
    """
    if _restriction.get() is not None and variable is not None and not variable.startswith(KEYS):
        raise UntrustedKey(variable)
