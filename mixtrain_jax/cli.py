"""What the commands share: flags in, one line and an exit code out.

A command describes its flags with `parser`, and hands its main function to `run`. Fields of the
config are flags too: `--config.data.max_boxes=50`. Bad input anywhere ends in one line on standard
error and exit code 2; a traceback always means a bug.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from mixtrain_jax import config
from mixtrain_jax.runtime.errors import BAD_INPUT, UserError

INTERRUPTED = 130


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


def parser(description: str | None, *, config_required: bool = True) -> argparse.ArgumentParser:
    """Returns a parser with the flag --config; the caller adds its own with `add_argument`.

    Args:
      description: shown by --help, with its line breaks; a module's docstring suits.
      config_required: whether the command can do nothing without --config.
    """
    result = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument(
        "--config",
        required=config_required,
        metavar="FILE[:ARGUMENT]",
        help="config file; --config.FIELD=VALUE changes one of its fields",
    )
    return result


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a command that may run in several processes; see `parallel.start`."""
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
      main: gets the flags; `config` among them is the loaded ConfigDict (None without --config).
        What it returns is the exit code, None meaning 0.
      parser: made by `parser`.
      arguments: the command line without the program's name; None takes it from sys.argv.
    """
    try:
        flags, overrides = _split(sys.argv[1:] if arguments is None else arguments)
        if isinstance(parser, _Parser):
            parser.check_flags(flags)
        namespace = parser.parse_intermixed_args(flags)
        if namespace.config is not None:
            namespace.config = config.load(namespace.config, overrides)
        elif overrides:
            raise UserError(f"--config.{next(iter(overrides))} needs --config, the file it changes")
        code = main(namespace)
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


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
