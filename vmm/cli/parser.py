"""argparse with QEMU's habits: long options with one dash, and one line for an error."""

from __future__ import annotations

import argparse
from typing import NoReturn

from vmm.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are :class:`ConfigError`, for ``main`` to print in one line.

    Args:
        command: the subcommand, for the usage line and the hint in errors.
        description: first paragraph of the help.
        epilog: last paragraphs of the help, kept as they are.
    """

    def __init__(self, command: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"vmm {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would have ended the process with.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message} ({self.prog} --help lists the options)")
