"""Conversations to text through the tokenizer's chat template, and which part of it is learned.

Where an assistant's turn begins is found by rendering the conversation up to it, with the generation
prompt: that is the text in front of the model when it has to write the turn. Where the template marks
the turns itself (``{% generation %}``) its marks are taken. Either way the message's content must
stand in the span, and the row is refused otherwise: a wrong mask is never made in silence.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_align.datamodules.bad_rows import BadRow, DataError, shown
from lit_align.datamodules.columns import Message
from lit_align.runtime.chat_template import EndlessTemplate, apply_template, bounded, template_name

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\b")
#: Text that a reasoning template may leave out of earlier turns.
_REASONING_END = "</think>"


@dataclass(frozen=True)
class Conversation:
    """Messages with what their template needs besides.

    Attributes:
        where: source and row, for messages.
        messages: ``role``, ``content`` and more.
        tools: descriptions of the tools at hand.
        template_options: per-row variables of the template.
    """

    where: str
    messages: list[Message]
    tools: list[Any] | None = None
    template_options: Mapping[str, Any] | None = None


class ChatRenderer:
    """Renders conversations with one tokenizer's template.

    Args:
        tokenizer: a transformers tokenizer.
        template: a template instead of the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self._marks: bool | None = None
        # Beside the named ones, those that the tokenizer only lists: a base model's <|im_end|> is no EOS.
        added = tokenizer.added_tokens_decoder.values()
        self._special_tokens = {str(t) for t in added if t.special} | set(tokenizer.all_special_tokens)

    def render(self, conversation: Conversation, messages: Sequence[Message], prompt: bool = False) -> str:
        """The text of some messages, with the generation prompt behind them if ``prompt``.

        Raises:
            BadRow: the template refuses them.
            DataError: the template does not end.
        """
        self._require_template()
        try:
            return apply_template(
                self.tokenizer,
                [_bare(m) for m in messages],
                conversation.where,
                chat_template=self.template,
                tools=conversation.tools,
                add_generation_prompt=prompt,
                **(conversation.template_options or {}),
            )
        except EndlessTemplate as error:
            # Not one row's fault: the next would take as long.
            raise DataError(str(error)) from error
        except Exception as error:
            # A template is somebody's program, and fails in whatever way it likes.
            roles = ", ".join(str(m["role"]) for m in messages) or "none"
            raise BadRow(
                conversation.where, f"the chat template refuses messages with the roles {roles}: {error}"
            ) from error

    def pieces(self, conversation: Conversation, first: int = 0) -> tuple[str, list[tuple[str, float]]]:
        """Cut a rendered conversation into a prompt and the pieces behind it.

        Args:
            conversation: what to render.
            first: number of the first message that may be learned; those before are prompt.

        Returns:
            The prompt: everything up to the first assistant turn to learn; and the pieces behind it with
            their weights: an assistant's turn has its own (``weight``, or ``train``, or 1), all else 0.
            What follows the last assistant turn is cut off.

        Raises:
            BadRow: no assistant turn from ``first`` on, or one whose place cannot be told.
        """
        turns = [i for i, m in enumerate(conversation.messages) if i >= first and m["role"] == "assistant"]
        if not turns:
            roles = ", ".join(str(m["role"]) for m in conversation.messages[first:]) or "none"
            raise BadRow(conversation.where, f"no assistant message to learn from; found the roles {roles}")
        text = self.render(conversation, conversation.messages)
        spans = self._marked(conversation, text, turns) or self._derived(conversation, text, turns)
        pieces: list[tuple[str, float]] = []
        at = spans[0][0]
        for (start, end), i in zip(spans, turns, strict=True):
            if start > at:
                pieces.append((text[at:start], 0.0))
            pieces.append((text[start:end], _weight(conversation.where, i, conversation.messages[i])))
            at = end
        return text[: spans[0][0]], pieces

    def _derived(self, conversation: Conversation, text: str, turns: Sequence[int]) -> list[tuple[int, int]]:
        """Spans of the assistant turns, by rendering the messages before and up to each."""
        spans = []
        at = 0
        for i in turns:
            message = conversation.messages[i]
            start = self._start(conversation, text, i, at)
            end = self._end(conversation, text, i, start)
            if message["content"].strip() and not _holds(text[start:end], message["content"]):
                raise BadRow(
                    conversation.where,
                    f"cannot tell where message {i} (assistant) stands in the rendered conversation: its "
                    f"content {shown(message['content'])} is not in {shown(text[start:end])}. A template "
                    "that rewrites earlier turns must mark them with {% generation %}",
                )
            spans.append((start, end))
            at = end
        return spans

    def _start(self, conversation: Conversation, text: str, i: int, at: int) -> int:
        try:
            before = self.render(conversation, conversation.messages[:i], prompt=True)
        except BadRow:
            # Templates may refuse a conversation without a user's message; then the content itself is sought.
            before = ""
        if before and text.startswith(before) and len(before) >= at:
            return len(before)
        found = _find(text, conversation.messages[i]["content"], at)
        if found is None:
            raise BadRow(
                conversation.where,
                f"cannot tell where message {i} (assistant) begins: the conversation up to it, rendered "
                "alone, is not how the whole begins, and its content does not stand in it as it is. Mark the "
                "turns in the template with {% generation %}",
            )
        return found[0]

    def _end(self, conversation: Conversation, text: str, i: int, start: int) -> int:
        upto = self.render(conversation, conversation.messages[: i + 1])
        if len(upto) > start and text.startswith(upto):
            return self._trimmed(text, start, len(upto))
        found = _find(text, conversation.messages[i]["content"], start)
        if found is None:
            raise BadRow(
                conversation.where, f"cannot tell where message {i} (assistant) ends in the rendering"
            )
        return self._closed(text, found[1])

    def _trimmed(self, text: str, start: int, end: int) -> int:
        """Leave out what stands behind the token that ends a turn: the model stops at that token."""
        stripped = text[start:end].rstrip()
        if any(stripped.endswith(token) for token in self._special_tokens):
            return start + len(stripped)
        return end

    def _closed(self, text: str, end: int) -> int:
        """Take in a token that ends the turn, when it follows directly (or after white space)."""
        rest = text[end:].lstrip()
        for token in sorted(self._special_tokens, key=len, reverse=True):
            if token != self.tokenizer.bos_token and rest.startswith(token):
                return len(text) - len(rest) + len(token)
        return end

    def _marked(
        self, conversation: Conversation, text: str, turns: Sequence[int]
    ) -> list[tuple[int, int]] | None:
        """Spans that the template marks with ``{% generation %}``; ``None`` when it marks none."""
        if self._marks is None:
            self._marks = bool(_GENERATION_TAG.search(self._require_template()))
        if not self._marks:
            return None
        rendered, marks = self._rendered_with_marks(conversation)
        everyone = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
        if rendered != text or len(marks) != len(everyone):
            # Marks that do not stand for one assistant message each cannot be given its weight.
            return None
        spans = []
        for i, (start, end) in zip(everyone, marks, strict=True):
            if i not in turns:
                continue
            end = (
                self._closed(text, self._trimmed(text, start, end))
                if not self._ends(text[start:end])
                else end
            )
            content = conversation.messages[i]["content"]
            if content.strip() and not _holds(text[start:end], content):
                return None
            spans.append((start, self._trimmed(text, start, end)))
        return spans

    def _rendered_with_marks(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        marks: list[tuple[int, int]] = []

        def render() -> str:
            rendered, indices = render_jinja_template(
                [[_bare(m) for m in conversation.messages]],
                tools=conversation.tools,
                chat_template=self._require_template(),
                return_assistant_tokens_mask=True,
                **self._variables(),
                **(conversation.template_options or {}),
            )
            marks.extend((a, b) for a, b in indices[0] if b > a)
            return str(rendered[0])

        name = template_name(self.tokenizer, self.template)
        try:
            return bounded(name, conversation.where, render), marks
        except EndlessTemplate as error:
            raise DataError(str(error)) from error

    def _ends(self, span: str) -> bool:
        return any(span.rstrip().endswith(token) for token in self._special_tokens)

    def _variables(self) -> dict[str, Any]:
        return {
            name: str(token)
            for name, token in self.tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        }

    def _require_template(self) -> str:
        template = self.template or self.tokenizer.chat_template
        if template is None:
            raise DataError(
                f"the rows are conversations, but the tokenizer {self.tokenizer.name_or_path!r} has no chat "
                "template. Give one with chat_template (Jinja text, or a file that holds it), use the "
                "tokenizer of a chat model, or rows of plain text"
            )
        if isinstance(template, dict):
            template = template.get("default")
        return str(template)


def _bare(message: Message) -> Message:
    """A message without our own flags, which a template may not know."""
    return {key: value for key, value in message.items() if key not in ("weight", "train")}


def _weight(where: str, i: int, message: Message) -> float:
    if "train" in message and not isinstance(message["train"], bool):
        raise BadRow(where, f"message {i}.train: expected true or false, found {shown(message['train'])}")
    weight = message.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise BadRow(where, f"message {i}.weight: expected a number of at least 0, found {shown(weight)}")
    return float(weight) if message.get("train", True) else 0.0


def _needle(content: str) -> str:
    return content.rpartition(_REASONING_END)[2].strip() or content.strip()


def _holds(span: str, content: str) -> bool:
    return content.strip() in span or _needle(content) in span


def _find(text: str, content: str, at: int) -> tuple[int, int] | None:
    """Where a message's content stands from ``at`` on."""
    for needle in (content.strip(), _needle(content)):
        start = text.find(needle, at) if needle else -1
        if start >= 0:
            return start, start + len(needle)
    return None
