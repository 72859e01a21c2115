"""argparse with QEMU's habits: long options with one dash, and one line for an error."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from vmm.errors import ConfigError

MAX_HELP_WIDTH = 100


def _formatter(prog: str) -> argparse.HelpFormatter:
    # argparse makes one for each option that is added, and without a width each asks shutil, which is slow to load.
    try:
        columns = os.get_terminal_size().columns
    except (OSError, ValueError):
        columns = MAX_HELP_WIDTH
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=min(columns - 2, MAX_HELP_WIDTH))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are :class:`ConfigError`, for ``main`` to print in one line.

    Args:
        command: the subcommand, for the usage line and the hint in errors.
        usage: what may stand behind it.
        description: first paragraphs of the help.
        epilog: last paragraphs of the help, kept as they are.
    """

    def __init__(self, command: str, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"vmm {command}",
            usage=f"vmm {command} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=_formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would have ended the process with.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message} ({self.prog} --help lists the options)")

    def parse(self, words: list[str], operand: str) -> argparse.Namespace:
        """Parse a command line with one optional operand, which may stand between options and so is not argparse's.

        Args:
            words: the command line.
            operand: attribute for the operand; None if there is none.

        Raises:
            ConfigError: an unknown option, a second operand, or what an option has to complain about.
        """
        arguments, rest = self.parse_known_args(words)
        unknown = [word for word in rest if word.startswith("-") and word != "-"]
        if unknown:
            self.error(f"unknown option {unknown[0]}")
        if len(rest) > 1:
            self.error(f"one {operand.upper()} at the most, not {' and '.join(rest)}")
        setattr(arguments, operand, rest[0] if rest else None)
        return arguments
