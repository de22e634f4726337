"""What a reward function can ask for, and what it is given: the arguments that its signature names."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from lit_align.batches import Forest

#: Columns that hold the prompt, in the order in which they are looked for.
_PROMPT_COLUMNS = ("prompt", "messages", "conversations")


class RewardError(ValueError):
    """A reward function cannot be used as it is: its arguments, its result, or its name are wrong."""


@dataclass(frozen=True)
class RewardInputs:
    """A batch of completions as reward functions see it: lists of ``C``, one entry per completion.

    Attributes:
        prompts: the prompt of each completion, as the data has it: text, or a list of messages. Where the
            data is not at hand, the text of the prompt's tokens.
        completions: texts, without special tokens.
        prompt_ids: token ids of the prompts, as the policy saw them.
        completion_ids: token ids of the completions, the stop token included.
        columns: every column of the data by its name.
        finished: whether a completion came to its end by itself; ``None`` where nobody knows.
        step: how far training is, as the algorithm counts it.
        rows: row number of each completion's prompt, for messages.
        groups: which prompt of the batch each completion belongs to.
    """

    prompts: list[Any]
    completions: list[str]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    finished: list[bool] | None
    step: int
    rows: list[int]
    groups: list[int]

    @classmethod
    def from_forest(cls, forest: Forest, tokenizer: Any, step: int) -> "RewardInputs":
        """Take a batch of completions apart.

        Args:
            forest: with ``records``, where functions are to see columns, and the column ``finished``.
            tokenizer: decodes the completions.
            step: of training.
        """
        pairs = [(prompt, completion) for prompt, completion, _ in forest.sequences()]
        records = [forest.records[p] for p in forest.parents] if forest.records else []
        names = dict.fromkeys(name for record in forest.records for name in record)
        finished = forest.completion_columns.get("finished")
        return cls(
            prompts=_prompts(records, pairs, tokenizer),
            completions=_texts(tokenizer, [completion for _, completion in pairs]),
            prompt_ids=[prompt for prompt, _ in pairs],
            completion_ids=[completion for _, completion in pairs],
            columns={name: [record.get(name) for record in records] for name in names},
            finished=None if finished is None else finished.bool().tolist(),
            step=step,
            rows=[forest.rows[p] for p in forest.parents],
            groups=list(forest.parents),
        )

    def __len__(self) -> int:
        return len(self.completions)

    def select(self, indices: Sequence[int]) -> "RewardInputs":
        """The same of some completions, in the order given."""

        def of(values: list[Any]) -> list[Any]:
            return [values[i] for i in indices]

        return RewardInputs(
            of(self.prompts),
            of(self.completions),
            of(self.prompt_ids),
            of(self.completion_ids),
            {name: of(values) for name, values in self.columns.items()},
            None if self.finished is None else of(self.finished),
            self.step,
            of(self.rows),
            of(self.groups),
        )

    def by_prompt(self) -> list[list[int]]:
        """For each prompt, the indices of its completions."""
        found: dict[int, list[int]] = {}
        for i, group in enumerate(self.groups):
            found.setdefault(group, []).append(i)
        return list(found.values())

    def where(self, i: int) -> str:
        """How messages name the prompt of a completion: its row, and how it begins or, of messages, ends."""
        prompt = self.prompts[i]
        if not isinstance(prompt, str):
            last = prompt[-1] if isinstance(prompt, list) and prompt else prompt
            prompt = last.get("content", last) if isinstance(last, Mapping) else last
        text = " ".join(str(prompt).split())
        return f"row {self.rows[i]} ({text[:50] + '…' if len(text) > 50 else text!r})"


def arguments_for(
    function: Callable[..., Any],
    inputs: RewardInputs,
    options: Mapping[str, Any],
    name: str,
    messages: bool = False,
    log_metric: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """The keyword arguments of one call: what the signature names, or everything where it has ``**``.

    Beside the fields of `RewardInputs` and the data's columns there are ``trainer_state`` (with
    ``global_step``) and ``log_metric(name, value)``, which functions written for TRL may use.

    Args:
        function: that is going to be called.
        inputs: the batch.
        options: arguments that the user fixed; they come before everything else.
        name: of the function, for messages.
        messages: give completions as messages of the assistant, ``[{"role": ..., "content": ...}]``, where
            the prompt is a conversation, as TRL does.
        log_metric: takes a number to report.

    Raises:
        RewardError: the function asks for what there is not, or an option is not one of its arguments.
    """
    parameters = parameters_of(function, name)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_all:
        _check_taken(parameters, options, name)
    available = {
        **inputs.columns,
        "prompts": inputs.prompts,
        "completions": _as_messages(inputs) if messages else inputs.completions,
        "prompt_ids": inputs.prompt_ids,
        "completion_ids": inputs.completion_ids,
        "finished": inputs.finished,
        "step": inputs.step,
        "trainer_state": SimpleNamespace(global_step=inputs.step),
        "log_metric": log_metric or (lambda name, value: None),
        **options,
    }
    if takes_all:
        return available
    _check_there(parameters, available, inputs, name)
    return {key: available[key] for key in parameters if key in available}


def parameters_of(function: Callable[..., Any], name: str) -> dict[str, inspect.Parameter]:
    """Parameters of a callable by name; of a module those of its ``forward``.

    Raises:
        RewardError: they cannot be known, or cannot be given by name.
    """
    try:
        # A module's own __call__ names nothing.
        signature = inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"reward {name!r}: {function!r} does not tell its arguments ({error}); wrap it in a function "
            "that names what it needs: def reward(completions, answer): ..."
        ) from error
    parameters = dict(signature.parameters)
    for key, parameter in parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise RewardError(
                f"reward {name!r}: {key!r} can only be given by position; rewards are given by name"
            )
    return parameters


def _as_messages(inputs: RewardInputs) -> list[Any]:
    """Completions of conversations as what the assistant says, others as text."""
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(inputs.prompts, inputs.completions, strict=True)
    ]


def _check_taken(parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any], name: str) -> None:
    for option in options:
        if option not in parameters:
            close = difflib.get_close_matches(option, parameters, n=1)
            raise RewardError(
                f"reward {name!r} has no option {option!r}"
                + (f"; did you mean {close[0]!r}?" if close else f"; it takes {', '.join(parameters)}")
            )


def _check_there(
    parameters: Mapping[str, inspect.Parameter],
    available: Mapping[str, Any],
    inputs: RewardInputs,
    name: str,
) -> None:
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        if needed and key not in available:
            columns = ", ".join(inputs.columns) or "none"
            close = difflib.get_close_matches(key, available, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise RewardError(
                f"reward {name!r} asks for {key!r}{hint}, which is no column of the data and no option. "
                f"Columns: {columns}. Another column can take the name (data.columns: {{{key}: its name}}), "
                f"and options give what is the same for all (options: {{{key}: ...}})"
            )


def _prompts(records: list[Any], pairs: list[tuple[list[int], list[int]]], tokenizer: Any) -> list[Any]:
    column = next((c for c in _PROMPT_COLUMNS if records and c in records[0]), None)
    if column is None:
        return _texts(tokenizer, [prompt for prompt, _ in pairs])
    return [record[column] for record in records]


def _texts(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    return [str(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)] if ids else []
