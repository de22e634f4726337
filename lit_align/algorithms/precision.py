"""Precisions of the trainer that convert what they are given."""

from typing import Any

from lit_align.batches import Forest


def keep_forests(plugin: Any) -> None:
    """Let a precision plugin leave forests as they are.

    ``bf16-true``, ``16-true`` and ``64-true`` turn every floating-point tensor of a batch into theirs. In a
    forest those are weights and log-probs, whose sums over thousands of tokens a half precision cannot count.

    Args:
        plugin: the trainer's; called again it does nothing.
    """
    convert = plugin.convert_input
    if getattr(convert, "keeps_forests", False):
        return

    def convert_others(data: Any) -> Any:
        return data if isinstance(data, Forest) else convert(data)

    convert_others.keeps_forests = True  # type: ignore[attr-defined]
    plugin.convert_input = convert_others
