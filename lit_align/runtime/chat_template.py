"""Chat templates are somebody's programs: each has a time to end in, and a size to stay in."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from lit_align.runtime.time_limit import OutOfTime, within

#: A rendering takes milliseconds; so long only one that does not end.
SECONDS = 10.0
#: Characters of a rendering, at most; far above any model's context.
CHARACTERS = 50_000_000
#: Bits of a product of whole numbers, at most: squared again and again, one takes minutes.
_BITS = 10_000


class _Refused(Exception):
    """One operation that would take too long or too much memory, and that nothing could stop."""


class EndlessTemplate(ValueError):
    """A chat template does not end, or writes more than anybody reads."""


def apply_template(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    where: str,
    chat_template: str | None = None,
    **options: Any,
) -> str:
    """A conversation as text, within :func:`bounded`.

    Args:
        tokenizer: of transformers.
        messages: one conversation.
        where: what it is, for the error.
        chat_template: instead of the tokenizer's own.
        options: further ones of ``apply_chat_template``.

    Raises:
        EndlessTemplate: the template goes beyond a limit.
        Exception: what it raises.
    """

    def render() -> str:
        # tokenize=False and a single conversation: a string comes back.
        text: str = tokenizer.apply_chat_template(
            list(messages), chat_template=chat_template, tokenize=False, **options
        )
        return text

    return bounded(template_name(tokenizer, chat_template), where, render)


def template_name(tokenizer: Any, chat_template: str | None) -> str:
    """What errors call a template: the tokenizer's, or one that was given instead."""
    return f"the chat template {'of' if chat_template is None else 'given for'} {tokenizer.name_or_path}"


def bounded(name: str, where: str, render: Callable[[], str]) -> str:
    """Render a template, which transformers does in a sandbox, within limits of time and size.

    Args:
        name: of the template, for the error; see :func:`template_name`.
        where: what is rendered, for the error.
        render: renders it.

    Raises:
        EndlessTemplate: it goes beyond a limit.
        Exception: what the template raises.
    """
    _limit_operations()
    try:
        text = within(SECONDS, render)
    except _Refused as error:
        raise EndlessTemplate(f"{where}: {name} {error}. Give another with chat_template") from None
    except OutOfTime:
        raise EndlessTemplate(
            f"{where}: {name} was stopped after {SECONDS:g} s; a rendering takes "
            "milliseconds. Look at its loops, or give another with chat_template"
        ) from None
    if len(text) > CHARACTERS:
        raise EndlessTemplate(
            f"{where}: {name} wrote {len(text):,} characters, more than "
            f"{CHARACTERS:,}. Look at its loops, or give another with chat_template"
        )
    return text


@cache
def _limit_operations() -> None:
    """Let transformers compile chat templates for a sandbox that looks at products before they are made.

    ``'a' * n`` and ``9 ** n`` are one operation each, which is over before anybody can look at the time or at
    what was written.
    """
    from transformers.utils import chat_template_utils

    sandbox: Any = chat_template_utils.ImmutableSandboxedEnvironment

    class Limited(sandbox):
        # Neither is computed of two constants while a template is compiled then.
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**":
                raise _Refused("computes a power (**), which a chat template has no use for")
            _check_product(left, right)
            return super().call_binop(context, operator, left, right)

    chat_template_utils.ImmutableSandboxedEnvironment = Limited
    # What was compiled before was for the other.
    chat_template_utils._compile_jinja_template.cache_clear()


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _BITS:
        raise _Refused(f"multiplies whole numbers to more than {_BITS:,} bits")
    for repeated, times in ((left, right), (right, left)):
        if not isinstance(repeated, str | bytes | list | tuple) or not isinstance(times, int):
            continue
        # An entry of a list is a pointer of eight bytes.
        limit = CHARACTERS if isinstance(repeated, str | bytes) else CHARACTERS // 8
        if len(repeated) * times > limit:
            raise _Refused(
                f"multiplies {'text' if isinstance(repeated, str | bytes) else 'a list'} to a length of "
                f"{len(repeated) * times:,}, more than {limit:,}"
            )
