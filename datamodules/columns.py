"""From a raw row to named columns: mapping, types, messages, and errors that name what was found."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lit_align.datamodules.bad_rows import BadRow, DataError, nearest, shown
from lit_align.datamodules.readers import Unreadable
from lit_align.datamodules.sources import Record

Message = dict[str, Any]

#: Roles that chat templates know, and the names that ShareGPT files use for them.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def check_mapping(columns: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse a mapping to a column that the DataModule does not know.

    Raises:
        DataError: naming the nearest column.
    """
    for ours in columns:
        if ours not in known:
            raise DataError(
                f"columns: {ours!r} is no column of this DataModule{nearest(ours, known)}; "
                f"it knows {', '.join(known)}. (columns maps our name to the file's: {{prompt: question}})"
            )


def rename(record: Record, columns: Mapping[str, str]) -> Record:
    """The same row under our names.

    Raises:
        BadRow: the row is not a mapping, or lacks a mapped column.
    """
    values = record.values
    if isinstance(values, Unreadable):
        raise BadRow(record.where, values.problem)
    if not isinstance(values, Mapping):
        raise BadRow(record.where, f"expected a row of named columns, found {shown(values)}")
    if not columns:
        return record
    for theirs in columns.values():
        if theirs not in values:
            raise BadRow(
                record.where,
                f"no column {theirs!r}{nearest(theirs, values)}; the row has {', '.join(map(str, values))}",
            )
    taken = set(columns.values())
    kept = {name: value for name, value in values.items() if name not in taken and name not in columns}
    return Record(record.row, record.where, kept | {ours: values[theirs] for ours, theirs in columns.items()})


def choose_format(record: Record, formats: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The first format whose columns the row has.

    Args:
        record: a row, columns renamed.
        formats: alternatives, each a tuple of required columns, the most telling first.

    Raises:
        BadRow: none fits; the message names the format that misses fewest and the nearest spelling.
    """
    have = set(record.values)
    for required in formats:
        if have.issuperset(required):
            return required

    def distance(required: tuple[str, ...]) -> tuple[float, bool]:
        absent = [name for name in required if name not in have]
        return len(absent) / len(required), not any(nearest(name, have) for name in absent)

    closest = min(formats, key=distance)
    missing = next(name for name in closest if name not in have)
    raise BadRow(
        record.where,
        f"column {missing!r} is missing; found {', '.join(map(repr, record.values)) or 'no columns'}, "
        f"expected {' or '.join(' + '.join(required) for required in formats)}{nearest(missing, have)}. "
        f"A column of another name is mapped by columns: {{{missing}: <its name>}}",
    )


def text(record: Record, column: str) -> str:
    """A column that holds a string.

    Raises:
        BadRow: it is missing, null, or something else.
    """
    value = present(record, column)
    if not isinstance(value, str):
        raise BadRow(record.where, f"column {column!r}: expected a string, found {shown(value)}")
    return value


def present(record: Record, column: str) -> Any:
    """A column that is there and not null.

    Raises:
        BadRow: it is missing or null.
    """
    if column not in record.values:
        raise BadRow(
            record.where,
            f"column {column!r} is missing; found {', '.join(map(repr, record.values))}"
            f"{nearest(column, record.values)}",
        )
    if record.values[column] is None:
        raise BadRow(record.where, f"column {column!r}: expected a value, found null")
    return record.values[column]


def number(record: Record, column: str) -> float:
    """A column that holds a finite number.

    Raises:
        BadRow: it is missing, null, not a number, or not finite.
    """
    value = present(record, column)
    try:
        # CSV files know only strings.
        result = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        result = None
    if result is None or result - result != 0:
        raise BadRow(record.where, f"column {column!r}: expected a finite number, found {shown(value)}")
    return result


def structure(record: Record, column: str, kind: type) -> Any:
    """An optional column that holds a list or a mapping, possibly written as JSON; ``None`` when absent.

    Raises:
        BadRow: it holds something else.
    """
    value = record.values.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise BadRow(
                record.where,
                f"column {column!r}: expected a {kind.__name__} or its JSON, found {shown(value)}",
            ) from None
    if value is None:
        return None
    if not isinstance(value, kind):
        raise BadRow(record.where, f"column {column!r}: expected a {kind.__name__}, found {shown(value)}")
    return without_nulls(value)


def without_nulls(value: Any) -> Any:
    """A structure without the null fields that Parquet and Arrow add to make rows alike."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def is_messages(value: Any) -> bool:
    """Whether a column holds messages rather than text."""
    return isinstance(value, Mapping | list | tuple)


def messages(record: Record, column: str) -> list[Message]:
    """A column of messages, ShareGPT's ``from``/``value`` turned into ``role``/``content``.

    Args:
        record: a row, columns renamed.
        column: a list of messages, or one message.

    Returns:
        Messages with ``role`` and whatever else they carry.

    Raises:
        BadRow: it is a string, empty, or one of its messages lacks a known role or any content.
    """
    value = present(record, column)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise BadRow(record.where, f"column {column!r}: expected a list of messages, found {shown(value)}")
    if not value:
        raise BadRow(record.where, f"column {column!r}: expected at least one message, found an empty list")
    return [_message(record.where, f"{column}[{i}]", item) for i, item in enumerate(value)]


def _message(where: str, place: str, value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow(where, f"column {place}: expected a message (role, content), found {shown(value)}")
    found = without_nulls(value)
    if "role" not in found and "from" in found:
        found = _from_sharegpt(where, place, found)
    if "role" not in found:
        names = ", ".join(map(repr, value)) or "nothing"
        raise BadRow(where, f"column {place}: no 'role'; found {names}{nearest('role', value)}")
    role = found["role"]
    if role not in ROLES:
        raise BadRow(
            where,
            f"column {place}.role: found {shown(role)}, expected one of {', '.join(ROLES)}"
            f"{nearest(role, ROLES)}",
        )
    if "content" not in found and not found.get("tool_calls"):
        what = "null" if "content" in value else "none"
        raise BadRow(
            where, f"column {place}.content: expected a string, found {what}{nearest('content', found)}"
        )
    content = found.get("content", "")
    if not isinstance(content, str | list):
        raise BadRow(where, f"column {place}.content: expected a string, found {shown(content)}")
    return found | {"content": _joined(where, place, content)}


def _joined(where: str, place: str, content: str | list[Any]) -> str:
    """Content given in parts, ``[{"type": "text", "text": ...}]``, as one string."""
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if not (
            isinstance(part, Mapping)
            and part.get("type", "text") == "text"
            and isinstance(part.get("text"), str)
        ):
            raise BadRow(where, f"column {place}.content: expected text parts, found {shown(part)}")
        parts.append(part["text"])
    return "".join(parts)


def _from_sharegpt(where: str, place: str, found: Message) -> Message:
    speaker = found["from"]
    if speaker not in _SHAREGPT_ROLES:
        names = ", ".join(_SHAREGPT_ROLES)
        raise BadRow(
            where,
            f"column {place}.from: found {shown(speaker)}, expected one of {names}"
            f"{nearest(speaker, _SHAREGPT_ROLES)}",
        )
    rest = {key: item for key, item in found.items() if key not in ("from", "value")}
    message = {"role": _SHAREGPT_ROLES[speaker], **rest}
    return message | {"content": found["value"]} if "value" in found else message
