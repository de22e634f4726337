"""The command line before the parser sees it.

Configuration files are found, read, merged and checked here, variables of the environment become
options, and short forms become long ones. What is left for the parser is one configuration and a
list of options, in the order in which they count: files, environment, command line.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_align.cli.errors import CommandLineError
from lit_align.cli.recipes import find_config
from lit_align.runtime import trust

#: Arguments of an algorithm that describe a model: a bare name stands for their ``path``.
MODEL_ARGUMENTS = ("policy", "critic")
#: Values of them that are words, and no paths.
_WORDS = ("shared", "adapter")
_ZERO = "lit_align.runtime.zero_strategy.ZeroStrategy"
#: Registered names of strategies: the class, which alone takes arguments, and those that the name stands for.
_STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "fsdp2": ("lit_align.runtime.sharded_strategy.ShardedStrategy", {}),
    "zero2": (_ZERO, {"stage": 2}),
    "zero3": (_ZERO, {"stage": 3}),
}
ENV_PREFIX = "LIT_ALIGN_"
#: Options without a dot that may come from the environment; LIT_ALIGN_DEBUG and the like are not options.
_PLAIN_OPTIONS = ("config", "seed_everything", "ckpt_path", "model", "data", "offline")
_CLASS_OPTIONS = ("--model", "--data", "--trainer.callbacks", "--trainer.callbacks+", "--model.reference")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_POLICY = re.compile(rf"--model\.(init_args\.)?({'|'.join(MODEL_ARGUMENTS)})")


@dataclass
class Arguments:
    """What a command line says, put in order.

    Attributes:
        options: options for the parser, the merged configuration first.
        config: the merged configuration.
        sources: file name and content of each configuration, for error messages.
        trusted: packages named by ``--trust``.
    """

    options: list[str]
    config: dict[str, Any]
    sources: list[tuple[str, dict[str, Any]]]
    trusted: list[str] = field(default_factory=list)

    def where(self, key: str) -> str:
        """Where the value of ``key`` comes from: ``in FILE``, or ``on the command line``."""
        names = [option.partition("=")[0] for option in self.options]
        if any(name.lstrip("-").split(".")[-1] == key for name in names):
            return "on the command line"
        for name, content in reversed(self.sources):
            if any(key == one for one, _ in _walk(content)):
                return f"in {name}"
        return "on the command line"


def prepare(command: str, argv: Sequence[str], environ: Mapping[str, str]) -> Arguments:
    """Put the arguments of one command in order.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        argv: what follows it.
        environ: the environment.

    Raises:
        CommandLineError: a configuration cannot be found or read.
    """
    given = [*_from_environment(command, environ), *_pairs(argv)]
    trusted = [name for option, value in given if option == "--trust" for name in (value or "").split(",")]
    names = [value for option, value in given if option in ("--config", "-c")]
    sources = [_read(name) for name in names]
    merged: dict[str, Any] = {}
    for _, content in sources:
        merged = merge(merged, content)
    if any(option.startswith("--trainer.strategy.") for option, _ in given):
        given, merged = _with_strategy_class(given, merged)
    options = ["--config", json.dumps(merged, default=str)] if sources else []
    for option, value in given:
        if option in ("--config", "-c", "--trust"):
            continue
        if _POLICY.fullmatch(option) and _is_path(value):
            option = f"{option}.path"
        if option == "--offline" and value is None:
            value = "true"
        options += [option] if value is None else [f"{option}={value}"]
    return Arguments(options, merged, sources, trusted)


def check_imports(arguments: Arguments) -> None:
    """Refuse dotted paths that are not trusted, and say which option or file names them.

    The parser enforces the same list at the import itself; this is the readable first line.
    """
    for key, value in _walk(arguments.config):
        if key == "class_path" and isinstance(value, str) and "." in value:
            trust.check(value)
    for option in arguments.options:
        name, _, value = option.partition("=")
        names_class = name.endswith(".class_path") or name in _CLASS_OPTIONS
        if names_class and _DOTTED.fullmatch(value) and not Path(value).is_file():
            trust.check(value)


def normalise(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration with every short form spelled out.

    >>> normalise({"model": {"class_path": "DPO", "init_args": {"policy": "some/model"}}})
    {'model': {'class_path': 'DPO', 'init_args': {'policy': {'path': 'some/model'}}}}
    """
    model = config.get("model")
    if isinstance(model, str):
        model = {"class_path": model}
    if not isinstance(model, dict):
        return config
    init = model.get("init_args")
    places = [model, init] if isinstance(init, dict) else [model]
    for place in places:
        for name in MODEL_ARGUMENTS:
            if isinstance(place.get(name), str) and _is_path(place[name]):
                place[name] = {"path": place[name]}
    return {**config, "model": model}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, mapping by mapping; lists and plain values are replaced.

    A different ``class_path`` replaces the whole object: arguments of one class mean nothing to another.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    if "class_path" in over and "class_path" in base and over["class_path"] != base["class_path"]:
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged


def _with_strategy_class(
    given: list[tuple[str, str | None]], merged: dict[str, Any]
) -> tuple[list[tuple[str, str | None]], dict[str, Any]]:
    """The class in the place of its name, so that it can be given arguments."""
    trainer = merged.get("trainer")
    name = trainer.get("strategy") if isinstance(trainer, dict) else None
    if isinstance(trainer, dict) and isinstance(name, str) and name in _STRATEGIES:
        path, init = _STRATEGIES[name]
        strategy = {"class_path": path, "init_args": dict(init)}
        merged = {**merged, "trainer": {**trainer, "strategy": strategy}}
    spelled: list[tuple[str, str | None]] = []
    for option, value in given:
        if option == "--trainer.strategy" and value in _STRATEGIES:
            path, init = _STRATEGIES[value]
            spelled.append((option, path))
            spelled += [(f"{option}.init_args.{key}", str(one)) for key, one in init.items()]
        else:
            spelled.append((option, value))
    return spelled, merged


def _is_path(value: str | None) -> bool:
    return value is not None and value not in _WORDS and not value.lstrip().startswith("{")


def _read(name: str | None) -> tuple[str, dict[str, Any]]:
    if not name:
        raise CommandLineError(
            "--config has no value", "name a YAML file, or a shipped one: --config dpo.yaml"
        )
    import yaml
    from jsonargparse import get_loader

    text = name if name.lstrip().startswith("{") else find_config(name).read_text(encoding="utf-8")
    label = "--config" if text is name else name
    try:
        # The parser's own loader: unlike plain YAML 1.1 it reads 1e-6 as a number.
        content = get_loader("yaml")(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise CommandLineError(
            f"{label}{place}: this is not YAML ({problem})", "look at that line"
        ) from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise CommandLineError(
            f"{label}: a configuration is a mapping, not {type(content).__name__}",
            "it has the keys model, data and trainer",
        )
    return label, normalise(content)


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Options with their values; a bare word without an option stands alone."""
    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        name, equals, value = token.partition("=")
        following = argv[position] if position < len(argv) else None
        if not token.startswith("-") or name in ("-h", "--help") or name.startswith("--print_"):
            yield token, None
        elif equals:
            yield name, value
        elif following is None or following.startswith("--"):
            yield token, None
        else:
            position += 1
            yield token, following


def _from_environment(command: str, environ: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """``LIT_ALIGN_TRAINER__MAX_STEPS=3`` is ``--trainer.max_steps 3``, for every command.

    ``LIT_ALIGN_FIT__TRAINER__MAX_STEPS`` is the same for ``fit`` alone, and counts more.
    """
    for prefix in (ENV_PREFIX, f"{ENV_PREFIX}{command.upper()}__"):
        for name, value in sorted(environ.items()):
            if not name.startswith(prefix):
                continue
            key = name.removeprefix(prefix).lower().replace("__", ".")
            first = key.partition(".")[0]
            if key in _PLAIN_OPTIONS or ("." in key and first in ("model", "data", "trainer")):
                yield f"--{key}", value


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)
