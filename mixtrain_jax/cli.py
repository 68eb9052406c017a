"""What the commands share: flags in, one line and an exit code out.

A command describes its flags with `parser`, and hands its main function to `run`. Fields of the
config are flags too: `--config.data.max_boxes=50`. Where a command is given a run's workdir and no
--config, it takes the config that the run was asked for. Bad input anywhere ends in one line on
standard error and exit code 2; a traceback always means a bug.
"""

import argparse
import difflib
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import mixtrain_jax
from mixtrain_jax import process
from mixtrain_jax.errors import BAD_INPUT, INTERRUPTED, UserError


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, and name the nearest flag."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def check_flags(self, arguments: Sequence[str]) -> None:
        """Refuses a flag nobody declared; argparse alone would rather tell what is missing."""
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for argument in arguments:
            flag = argument.partition("=")[0]
            if argument == "--":
                break
            if flag.startswith("--") and flag not in known:
                nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0)[0]
                raise UserError(f"unknown flag {flag}; the nearest is {nearest}")


def parser(
    description: str | None, *, config_required: bool = True, takes_config: bool = True
) -> argparse.ArgumentParser:
    """Returns a parser with the flag --config; the caller adds its own with `add_argument`.

    Args:
      description: shown by --help, with its line breaks; a module's docstring suits.
      config_required: whether the command can do nothing without a config.
      takes_config: whether it knows configs at all; if not, it has no flag --config.
    """
    result = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.set_defaults(config_required=config_required and takes_config)
    if takes_config:
        result.add_argument(
            "--config",
            metavar="FILE[:ARGUMENT]",
            help="config file or a recipe's name, such as cascade:plain; --config.FIELD=VALUE "
            "changes one of its fields",
        )
    result.add_argument(
        "--version", action="version", version=f"mixtrain_jax {mixtrain_jax.__version__}"
    )
    return result


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --data, which `run` turns into fields of the config."""
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="a data set in COCO, VOC or YOLO format: its kind and splits are found out; "
        "--config.data.FIELD=VALUE wins",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a command that may run in several processes; see `processes.start`."""
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="several processes: where the first can be reached (Slurm and Cloud TPU need no flag)",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="several processes: how many")
    parser.add_argument(
        "--process", type=int, metavar="I", help="several processes: this one's number, from 0"
    )


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Parses the command line, calls `main`, and exits.

    Args:
      main: gets the flags; `config` among them is the ConfigDict that was asked for (None without
        one) and `origin` says where it came from. What it returns is the exit code, None meaning 0.
      parser: made by `parser`.
      arguments: the command line without the program's name; None takes it from sys.argv.
    """
    process.prepare_storage()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what no text can
            stream.reconfigure(errors="backslashreplace")
    try:
        flags, overrides = _split(sys.argv[1:] if arguments is None else arguments)
        if isinstance(parser, _Parser):
            parser.check_flags(flags)
        namespace = parser.parse_intermixed_args(flags)
        _check_not_empty(namespace, parser)
        namespace.config, namespace.origin = _config(namespace, overrides)
        code = main(namespace)
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        from mixtrain_jax.runtime import storage

        if not storage.is_transient(error):
            raise
        print(f"error: a server or a network failed: {storage.reason(error)}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)


def _check_not_empty(namespace: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises UserError for a flag whose value is empty, as of a shell variable that is not set."""
    for name, value in vars(namespace).items():
        values = value if isinstance(value, list) else [value]
        if "" in values and value != parser.get_default(name):
            flag = f"--{name}" if values == [value] else f"one of {name.upper()}"
            raise UserError(f"{flag} is empty: give it a value, or leave it out")


def _config(namespace: argparse.Namespace, overrides: dict[str, str]) -> tuple[Any, Any]:
    """The config that was asked for, and its origin: of --config, or of the run that is named."""
    # Only now: --help is to answer at once.
    from mixtrain_jax.config import asked, load, own_data, recipes, saved

    if not hasattr(namespace, "config"):
        if overrides:
            raise UserError(f"unknown flag --config.{next(iter(overrides))}: there is no config")
        return None, saved.Origin()
    folder = getattr(namespace, "data", None)
    if namespace.config is not None:
        return asked.of_file(namespace.config, overrides, folder)
    for source in (getattr(namespace, "workdir", None), getattr(namespace, "checkpoint", None)):
        workdir = saved.workdir_of(source) if source else None
        if workdir is not None:
            return asked.of_run(workdir, overrides, folder)
        if source and namespace.config_required:
            raise UserError(f"{source}: no run's {saved.NAME} is there; say --config=FILE too")
    if folder and not namespace.config_required:
        overrides = own_data.of_folder(folder, overrides)
        return load.override_all(recipes.base(), overrides), saved.Origin("", overrides)
    if folder:
        raise UserError("--data needs --config, the recipe that is to use it")
    if overrides:
        raise UserError(f"--config.{next(iter(overrides))} needs --config, the file it changes")
    if namespace.config_required:
        raise UserError("--config=FILE is needed: no run is named whose config could be taken")
    return None, saved.Origin()


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes the flags --config.FIELD=VALUE and --config.FIELD VALUE out of a command line."""
    flags: list[str] = []
    overrides: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--config."):
            flags.append(argument)
            continue
        name, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise UserError(f"--config.{name} needs a value: --config.{name}=VALUE")
        overrides[name] = value
    return flags, overrides
