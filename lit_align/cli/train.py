"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's command line around our classes."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

# Importing a class registers its short name with the parser.
from lit_align import callbacks as _callbacks  # noqa: F401
from lit_align import datamodules as _datamodules  # noqa: F401
from lit_align.algorithms import a2c as _a2c  # noqa: F401
from lit_align.algorithms import dpo as _dpo  # noqa: F401
from lit_align.algorithms import grpo as _grpo  # noqa: F401
from lit_align.algorithms import ppo as _ppo  # noqa: F401
from lit_align.algorithms import reinforce_pp as _reinforce_pp  # noqa: F401
from lit_align.algorithms import reward as _reward  # noqa: F401
from lit_align.algorithms import rloo as _rloo  # noqa: F401
from lit_align.algorithms import sft as _sft  # noqa: F401
from lit_align.algorithms.base import AlignModule
from lit_align.cli import report
from lit_align.cli.arguments import Arguments, check_imports, normalise, prepare
from lit_align.cli.errors import CommandLineError
from lit_align.cli.explain import explain
from lit_align.cli.quiet import quieten
from lit_align.cli.run import Run
from lit_align.rollouts import native as _native  # noqa: F401
from lit_align.rollouts import server as _server  # noqa: F401
from lit_align.runtime import run_directory, trust

# Register the strategies "fsdp2", "zero2" and "zero3".
from lit_align.runtime import sharded_strategy as _sharded_strategy  # noqa: F401
from lit_align.runtime import zero_strategy as _zero_strategy  # noqa: F401
from lit_align.runtime.offline import go_offline
from lit_align.scoring.references import Reference

COMMANDS = ("fit", "validate", "test", "predict")


def main(args: ArgsType = None, run: bool = True, trusted: Sequence[str] = ()) -> "AlignCLI":
    """Run one of the trainer's commands.

    Args:
        args: the command and its options as a list, as on the command line (the process's own by
            default), or, from Python, the configuration as a mapping ``{"fit": {...}}``.
        run: ``False`` builds trainer, model and data without running; the list then has no command.
        trusted: packages that the configuration may import from, beside ``--trust``.

    Returns:
        The command line object, with ``trainer``, ``model`` and ``datamodule``.

    Raises:
        CommandLineError: the arguments are wrong, or name code outside of the trusted packages.
    """
    given = sys.argv[1:] if args is None else args
    arguments: Arguments | None = None
    parsed: Any = given
    if isinstance(given, (list, tuple)):
        command = given[0] if run and given else ""
        arguments = prepare(command, given[1:] if run else given, os.environ)
        parsed = [command, *arguments.options] if run else arguments.options
    elif isinstance(given, Mapping):
        plain = given.as_dict() if isinstance(given, Namespace) else dict(given)
        command = next((c for c in COMMANDS if c in plain), "") if run else ""
        content = normalise(dict(plain.get(command) or {}) if command else plain)
        arguments = Arguments([], content, [("the arguments", content)])
        parsed = {**plain, command: content} if command else content
    assert arguments is not None
    extra = [*arguments.trusted, *trusted]
    with _trusting(extra):
        check_imports(arguments)
        return AlignCLI(arguments, parsed, run)


def build_model(config: Path, trusted: Sequence[str] = ()) -> AlignModule:
    """The module that a configuration file describes, without a trainer and without weights.

    Args:
        config: a configuration; only its ``model`` is read.
        trusted: packages that it may import from.
    """
    arguments = prepare("", ["--config", str(config)], {})
    content = {"model": arguments.config.get("model")}
    with _trusting(trusted):
        check_imports(arguments)
        AlignParser.arguments = arguments
        parser = AlignParser(prog="lit-align")
        parser.add_lightning_class_args(AlignModule, "model", subclass_mode=True)
        model = parser.instantiate_classes(parser.parse_object(content)).model
    assert isinstance(model, AlignModule)
    return model


class AlignParser(LightningArgumentParser):
    """Lightning's parser, with errors in two lines."""

    #: Of the command line being parsed: the parser makes further parsers of this class by itself.
    arguments: Arguments | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error in words for people."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise _explained(message, parser, self.arguments) from ex


class AlignCLI(LightningCLI):
    """Lightning's command line in subclass mode, writing one directory per run.

    Differences from Lightning's: explicit values beat those in a checkpoint; optimisers are the
    algorithm's; a run's files lie together under ``runs/<name>/<n>``; errors are two lines.

    Args:
        arguments: what the command line says, in order.
        args: the same for the parser: options, or a mapping.
        run: whether to run the command.
    """

    def __init__(self, arguments: Arguments, args: Any, run: bool = True) -> None:
        self.arguments = arguments
        self.run: Run | None = None
        AlignParser.arguments = arguments
        # The seed stands in the saved configuration.
        logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
        super().__init__(
            AlignModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=AlignParser,
            parser_kwargs={"prog": "lit-align"},
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What is neither trainer, model nor data."""
        parser.add_argument(
            "--offline",
            type=bool,
            default=False,
            help="ask no Hub: names of models and data mean what lies here",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without Lightning's warning about arguments given from Python."""
        mapping = isinstance(args, (dict, Namespace))
        self.config = parser.parse_object(args) if mapping else parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Find ``--ckpt_path last``; unlike Lightning's, never take hyper-parameters from the file."""
        command = str(self.config.get("subcommand"))
        config = self.config.get(command)
        if config is None or config.get("ckpt_path") != "last":
            return
        root = config.trainer.default_root_dir or "."
        try:
            config.ckpt_path = str(run_directory.newest_checkpoint(root, self.run_name))
        except FileNotFoundError:
            # So that the same line starts a run, and goes on with it whenever it was cut off.
            if command != "fit":
                raise
            config.ckpt_path = None

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; what constructors refuse is told without the parser's frame."""
        if self._get(self.config, "offline"):
            go_offline()
        try:
            super().instantiate_classes()
        except ValueError as error:
            if "Does not validate against any of" not in str(error):
                raise
            raise _explained(str(error), self._parser(self.subcommand), self.arguments) from error

    @property
    def run_name(self) -> str:
        """Name of the first configuration file, or of the algorithm."""
        for name, _ in self.arguments.sources:
            path = Path(name)
            if path.suffix not in (".yaml", ".yml", ".json"):
                continue
            # A saved configuration, runs/dpo/3/config.yaml, goes on under the run's own name.
            return (
                path.absolute().parts[-3] if path.name == report.CONFIG_FILE and _in_run(path) else path.stem
            )
        return str(self._get(self.config, "model").class_path).rpartition(".")[2]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer, with loggers, checkpoints and export in the directory of the run."""
        quieten()
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        self.run = Run(self, str(self.subcommand or "fit"), config)
        return self.trainer_class(**self.run.trainer_arguments())

    def fit(self, **kwargs: Any) -> None:
        """Train, and say where things are and what comes next."""
        self.trainer.fit(**_safe_loading(kwargs))
        if self.run is not None and self.run.directory is not None and self.trainer.is_global_zero:
            report.print_end_of_fit(self.run.directory, self.arguments.sources)

    def validate(self, **kwargs: Any) -> None:
        """Print a table of metrics on the validation data."""
        self._evaluate("validate", kwargs)

    def test(self, **kwargs: Any) -> None:
        """Print a table of metrics on the test data."""
        self._evaluate("test", kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Write what the algorithm says about each row as JSONL."""
        kwargs["return_predictions"] = False
        self.trainer.predict(**_safe_loading(kwargs))

    def _evaluate(self, stage: str, kwargs: dict[str, Any]) -> None:
        verbose = kwargs.pop("verbose", True)
        results = getattr(self.trainer, stage)(verbose=False, **_safe_loading(kwargs))
        if verbose and self.trainer.is_global_zero:
            report.print_metrics(stage, results)


def _explained(message: str, parser: Any, arguments: Arguments | None) -> CommandLineError:
    names = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
    where = arguments.where if arguments else lambda key: "on the command line"
    return explain(message, names, (AlignModule, L.LightningDataModule, Reference, L.Callback), where)


def _safe_loading(kwargs: dict[str, Any]) -> dict[str, Any]:
    # A checkpoint is data; unpickling more than tensors and plain values would run its author's code.
    if kwargs.get("weights_only") is None:
        kwargs["weights_only"] = True
    return kwargs


def _in_run(path: Path) -> bool:
    parts = path.absolute().parts
    return len(parts) > 4 and parts[-4] == "runs" and parts[-2].isdecimal()


@contextmanager
def _trusting(extra: Sequence[str]) -> Iterator[None]:
    """Import by name only what is trusted, in the parser and in our own code."""
    try:
        with (
            _working_directory_importable(bool(extra)),
            trust.restricted(extra) as allowed,
            _parser_policy(allowed),
        ):
            yield
    except trust.UntrustedImport as error:
        raise CommandLineError(str(error), error.hint) from error


@contextmanager
def _parser_policy(allowed: Sequence[str]) -> Iterator[None]:
    """Let the parser import what is allowed and nothing else, wherever a value comes from."""
    # The settings are the process's, so they are put back: a notebook may have parsers of its own.
    from jsonargparse._common import parsing_settings

    before = dict(parsing_settings)
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=list(allowed),
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    finally:
        parsing_settings.update(before)


@contextmanager
def _working_directory_importable(wanted: bool) -> Iterator[None]:
    """Let ``--trust mine`` find ``mine.py`` here: a console script does not have this folder on its path."""
    here = os.getcwd()
    if not wanted or here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


__all__ = ["AlignCLI", "AlignParser", "CommandLineError", "main"]
