"""The parser's errors in two lines: what is wrong and where, and the nearest name that is right."""

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from lit_align.cli.errors import CommandLineError, nearest
from lit_align.cli.names import translate
from lit_align.runtime.trust import UntrustedImport

_KEY = re.compile(r'Parser key "([^"]+)":?\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':")
_NOISE = re.compile(
    r"(Does not validate against any of|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>"
    r"|Expected a path but|Problem in config|\s*$)"
)
_UNKNOWN = (
    re.compile(r"Option '(?P<name>[^']+)' is not accepted"),
    re.compile(r"(Subcommand|Group) '(?P<group>[^']+)' does not accept option '(?P<name>[^']+)'"),
    re.compile(r"[Uu]nrecognized arguments: --(?P<name>[^ =]+)"),
    re.compile(r"Key '(?P<name>[^']+)' is not expected"),
)


@dataclass
class _Found:
    """What the tree of an error message says: the way down to its first leaf, and the leaf."""

    keys: list[str] = field(default_factory=list)
    class_path: str | None = None
    leaf: str = ""


def explain(
    message: str,
    options: Iterable[str],
    classes: Sequence[type],
    where: Callable[[str], str],
) -> CommandLineError:
    """Turn an error of the parser into two lines.

    Args:
        message: what the parser says.
        options: names of the command's own options (``trainer.max_steps``).
        classes: base classes whose subclasses can be named.
        where: from a key to where it was given (``in dpo.yaml``).
    """
    found = _descend(message)
    unknown = next((m for p in _UNKNOWN if (m := p.search(found.leaf))), None)
    if unknown is not None:
        return _unknown_name(found, unknown, list(options), where)
    if missing := re.search(r"arguments are required: (.+)", found.leaf):
        return _missing(found, missing[1])
    if re.search(r"dot import path string: (\S+)", found.leaf) or found.leaf.startswith(
        ("No module named", "module ")
    ):
        return _unknown_class(found, classes, where)
    # The parser's own refusal, or ours of a name that a constructor was given.
    if denied := re.search(r"(?:Importing|configuration names) '([^']+)',? (?:is|which is) not", found.leaf):
        error = UntrustedImport(denied[1])
        return CommandLineError(str(error), error.hint)
    key = ".".join(found.keys)
    place = f"{key} ({where(found.keys[-1].rpartition('.')[2])})" if key else "lit-align"
    if mismatch := re.match(r"Expected an? (.+?)\. Got value: (.*)", found.leaf):
        wanted = re.sub(r"<class '([^']+)'>", r"\1", mismatch[1]).replace("typing.", "")
        return CommandLineError(f"{place}: {mismatch[2]!r} is not valid", f"it takes {wanted}")
    message, _, advice = found.leaf.partition("; ")
    prefix = f"{place}: " if key else ""
    return CommandLineError(f"{prefix}{message}", advice or "lit-align COMMAND --help lists what is accepted")


def _descend(message: str) -> _Found:
    found = _Found()
    for raw in message.splitlines():
        line = raw.strip().removeprefix("- ")
        if key := _KEY.match(line):
            if not found.leaf:
                found.keys.append(key[1])
            line = key[2]
        elif cls := _CLASS.match(line):
            if not found.leaf:
                found.class_path = cls[1]
            continue
        if not found.leaf and not _NOISE.match(line):
            found.leaf = line
    found.leaf = found.leaf or message.strip().splitlines()[0]
    return found


def _unknown_name(
    found: _Found, match: re.Match[str], options: list[str], where: Callable[[str], str]
) -> CommandLineError:
    groups = match.groupdict()
    name, group = groups["name"], groups.get("group")
    inside = group if group and match[0].startswith("Group") else None
    head, _, leaf = name.rpartition(".")
    cls = _import(found.class_path)
    if cls is not None:
        path = [*(inside.split(".") if inside else []), *(head.split(".") if head else [])]
        known = _parameters(cls, path)
        owner = ".".join([cls.__name__, *path])
        guess = nearest(leaf, known)
        hint = f"did you mean {guess!r}?" if guess else f"it has {', '.join(known)}"
    else:
        owner = "lit-align"
        known = options
        guess = nearest(name, known) or nearest(leaf, [o for o in known if o.rpartition(".")[0] == head])
        hint = f"did you mean --{guess}?" if guess else "lit-align COMMAND --help lists what there is"
    ours = translate(leaf)
    if ours is not None and (cls is None or nearest(leaf, known) is None or leaf not in known):
        # A name from elsewhere that means something here is a better answer than a name that looks alike.
        hint = f"lit-align says {ours}"
    return CommandLineError(f"{owner} has no argument {leaf if cls else name!r} ({where(leaf)})", hint)


def _missing(found: _Found, names: str) -> CommandLineError:
    if found.class_path:
        short = found.class_path.rpartition(".")[2]
        wanted = ", ".join(f"--{'.'.join([*found.keys, name])}" for name in names.split(", "))
        return CommandLineError(
            f"{short} needs {wanted}", "give it on the command line or in the configuration"
        )
    plain = [name.partition(".")[2] or name for name in names.split(", ")]
    return CommandLineError(
        f"nothing says which {' and '.join(plain)} to use",
        "start from a configuration (--config dpo.yaml; 'lit-align recipes' lists them) "
        "or name both (--model DPO --data PreferenceDataModule)",
    )


def _unknown_class(found: _Found, classes: Sequence[type], where: Callable[[str], str]) -> CommandLineError:
    given = re.search(r"dot import path string: (\S+)", found.leaf)
    name = given[1] if given else found.class_path or found.leaf
    key = found.keys[-1] if found.keys else "model"
    known = {cls.__name__ for cls in _subclasses(classes)}
    guess = nearest(name.rpartition(".")[2], known)
    place = where("class_path")
    hint = f"did you mean {guess}?" if guess else f"there are {', '.join(sorted(known))}"
    return CommandLineError(f"{'.'.join(found.keys) or key}: there is no class {name!r} ({place})", hint)


def _import(path: str | None) -> type | None:
    """A class that the parser has already imported."""
    if not path:
        return None
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def _parameters(cls: type, path: Sequence[str]) -> list[str]:
    """Names that ``cls``, or the dataclass under ``path`` in it, takes."""
    for step in path:
        annotation = _annotation(cls, step)
        nested = next((t for t in _flatten(annotation) if is_dataclass(t)), None)
        if nested is None:
            return []
        cls = typing.cast(type, nested)
    if is_dataclass(cls):
        return [f.name for f in fields(cls)]
    names: list[str] = []
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if init is None:
            continue
        parameters = inspect.signature(init).parameters.values()
        names += [
            p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _annotation(cls: type, name: str) -> Any:
    if is_dataclass(cls):
        return typing.get_type_hints(cls).get(name)
    for base in cls.__mro__:
        annotations = getattr(base.__dict__.get("__init__"), "__annotations__", {})
        if name in annotations:
            return annotations[name]
    return None


def _flatten(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    return [inner for one in arguments for inner in _flatten(one)] if arguments else [annotation]


def _subclasses(classes: Sequence[type]) -> set[type]:
    found: set[type] = set()
    for cls in classes:
        children: list[type] = cls.__subclasses__()
        found.update(children)
        found |= _subclasses(children) if children else set()
    # Names of other packages are no help with a misspelt name of ours.
    return {cls for cls in found if cls.__module__.startswith("lit_align.") and not inspect.isabstract(cls)}
