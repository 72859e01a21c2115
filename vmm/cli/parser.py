"""argparse with QEMU's habits: long options with one dash, and one line for an error."""

from __future__ import annotations

import argparse
import os
import re
import sys
from functools import partial

from vmm.errors import ConfigError
from vmm.options import split_commas
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, NoReturn, TextIO

# Words here are English, argparse's own too: it would ask gettext, which loads `locale` only to find no translation.
argparse._ = str  # type: ignore[attr-defined]

MAX_HELP_WIDTH = 100

# Compiled when they are needed, which most command lines do not.
_ATTACHED = r"(-[cm])(\d.*)"
"""bhyve's options are getopt's, whose values may follow without a blank: -c4, -m512M."""

_COLUMNS = r"( +\S.*?) {2,}(\S.*)"
"""Something, a gap, and what it means."""

_WITH_FOREIGN_VALUES = frozenset({"-machine", "-device", "-drive", "-cpu", "-object", "-chardev", "-netdev"})
_CONSOLES = frozenset({"-serial", "-debugcon"})
_OWN_TARGETS = frozenset({"stdio", "none", "null", "file"})
_OWN_ACCELERATORS = frozenset({"auto", "kvm", "kvm+softcpu", "softcpu"})


_LEAST_WIDTH = 20


def columns(stream: TextIO, most: int) -> int:
    """Return how many columns text may have: those of the terminal, or else what COLUMNS says, if that is fewer."""
    try:
        wide = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        wide = 0
    wanted = os.environ.get("COLUMNS", "")
    wide = wide or (int(wanted) if wanted.isdecimal() and len(wanted) < 6 else 0)
    return min(max(_LEAST_WIDTH, wide), most) if wide else most


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if width >= MAX_HELP_WIDTH else fitted(text, width)


def _formatter(prog: str) -> argparse.HelpFormatter:
    width = columns(sys.stdout, MAX_HELP_WIDTH + 2) - 2
    return _Formatter(prog, max_help_position=min(26, width // 3), width=width)


def fitted(text: str, width: int) -> str:
    """Return help of a terminal's width: paragraphs filled anew, what stands in columns put below one another.

    Args:
        text: paragraphs without indentation; indented lines are commands or words, and behind a gap what they mean.
        width: columns.
    """
    if all(len(line) <= width for line in text.splitlines()):
        return text
    import textwrap

    fill = partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    lines: list[str] = []
    paragraph: list[str] = []
    for line in [*_rejoined(text), ""]:
        if line and not line.startswith(" "):
            paragraph.append(line)
            continue
        lines += fill(" ".join(paragraph))
        paragraph.clear()
        if len(line) <= width:
            lines.append(line)
        elif (found := re.fullmatch(_COLUMNS, line)) is not None and found.start(2) > width // 3:
            below = " " * (len(found[1]) - len(found[1].lstrip()) + 4)
            lines += fill(found[1], subsequent_indent=below)
            lines += fill(found[2], initial_indent=below, subsequent_indent=below)
        else:
            at = found.start(2) if found is not None else len(line) - len(line.lstrip()) + 4
            lines += fill(line, subsequent_indent=" " * at)
    return "\n".join(lines[:-1])


def _rejoined(text: str) -> list[str]:
    """Return the lines with those that go on below, further to the right, made one."""
    lines: list[str] = []
    for line in text.splitlines():
        before = lines[-1] if lines else ""
        indent, above = (len(text) - len(text.lstrip()) for text in (line, before))
        if not above or indent <= above:
            lines.append(line)
        elif before.endswith("\\"):
            lines[-1] = f"{before[:-1].rstrip()} {line.strip()}"
        else:
            found = re.fullmatch(_COLUMNS, before)
            lines[-1] += (" " if found is not None and found.start(2) == indent else "   ") + line.strip()
    return lines


def _one_dash(word: str) -> str:
    return word[1:] if word.startswith("--") else word


class AddUp(argparse.Action):
    """What several options of a name say together, as in QEMU: a later one wins only where both have a key.

    ``const`` is the key of a value without one.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Keep a value, or add it to what an earlier option of that name said."""
        before: str | None = getattr(namespace, self.dest)
        if before is not None:
            keys: dict[str, str] = {}
            for text in (before, values):
                for part in split_commas(text):
                    key, separator, _ = part.partition("=")
                    pair = part if separator else f"{self.const}={part}"
                    keys[key if separator else self.const] = pair.replace(",", ",,")
            values = ",".join(keys.values())
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are :class:`ConfigError`, for ``main`` to print in one line.

    Args:
        command: the subcommand, for the usage line and the hint in errors.
        usage: what may stand behind it.
        description: first paragraphs of the help.
        epilog: last paragraphs of the help, kept as they are.
    """

    machine_keys: tuple[str, ...] = ()
    """Keys of -machine; where there are any, the command describes a machine, and knows other VMMs' words for that."""

    def __init__(self, command: str, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"vmm {command}",
            usage=f"vmm {command} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=_formatter,
            allow_abbrev=False,
            add_help=False,
        )
        # In a group, as all others: options of the parser itself argparse tries with a formatter.
        self.add_argument_group("options").add_argument(
            "-h", "--help", action="help", help="show this help message and exit"
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would have ended the process with.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message} ({self.prog} --help lists the options)")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own says nothing where the help went nowhere.
        print(message, end="", file=file or sys.stdout, flush=True)

    def parse(self, words: list[str], operand: str, rest: str | None = None) -> argparse.Namespace:
        """Parse a command line with one optional operand, which may stand anywhere.

        Words are QEMU's: an option that has a value takes the next word, whatever that is; nothing is abbreviated; what
        stands behind ``--`` is no option. ``notes`` of the result says which words of other VMMs change nothing here.

        Args:
            words: the command line.
            operand: attribute for the operand; None if there is none.
            rest: attribute for what stands behind the operand, which is not looked at; None: options may stand there.

        Raises:
            ConfigError: unknown options and those that can't be served, a line each; a second operand; or what an
                option has to complain about.
        """
        options, operands, unknown = self._sort(words, whole=rest is None)
        if ("-h", None) in options:
            self.parse_args(["-h"])  # ends the process
        notes: list[str] = []
        # argparse takes it away where it is a value.
        refusals = [f"{name} --: no value is called so; ./-- is a file's" for name, value in options if value == "--"]
        options = [(name, value) for name, value in options if value != "--"]
        if self.machine_keys and self._may_be_foreign(options):
            from vmm.cli import foreign

            options, notes, refused = foreign.sort(options, self.machine_keys)
            refusals += refused
        refusals += [
            f"unknown option {word}{self._near(word)} ({self.prog} --help lists the options)" for word in unknown
        ]
        if refusals:
            raise ConfigError("\n".join(refusals))
        # In one word with its value, so that argparse can't take the value for something else.
        arguments = self.parse_args([name if value is None else f"{name}={value}" for name, value in options])
        if rest is not None:
            setattr(arguments, rest, operands[1:])
        elif len(operands) > 1:
            self.error(f"one {operand.upper()} at the most, not {' and '.join(operands)}")
        setattr(arguments, operand, operands[0] if operands else None)
        arguments.notes = notes
        return arguments

    def _near(self, word: str) -> str:
        from vmm.legible import suggestion

        # Without dashes, which make any two options alike.
        names = {name.lstrip("-"): name for name in self._option_string_actions}
        near = suggestion(word.partition("=")[0].lstrip("-"), [*names])
        return near and f"; did you mean {names[near]}?"

    def given(self, arguments: argparse.Namespace) -> list[str]:
        """Return the options of this parser that have another value than without them."""
        return [
            action.option_strings[0]
            for action in self._actions
            if action.option_strings and getattr(arguments, action.dest, action.default) != action.default
        ]

    def _sort(self, words: list[str], *, whole: bool) -> tuple[list[tuple[str, str | None]], list[str], list[str]]:
        """Return options, of other VMMs too, with their values; operands; and options that nobody knows."""
        options: list[tuple[str, str | None]] = []
        operands: list[str] = []
        unknown: list[str] = []
        waiting = words[::-1]
        while waiting:
            word = waiting.pop()
            name, equals, value = word.partition("=")
            if word == "--":
                operands += waiting[::-1]
                break
            if not word.startswith("-") or word == "-":
                operands.append(word)
                if not whole:
                    operands += waiting[::-1]
                    break
            elif word == "-s" and self._foreign(word, waiting):  # bhyve's has a value
                options.append((word, self._value(word, waiting)))
            elif (action := self._action(word)) is not None:
                options.append((action.option_strings[0], None if action.nargs == 0 else self._value(word, waiting)))
            elif word.startswith("--") and equals and self._action(name) is not None:
                options.append((name, value))
            elif (attached := re.fullmatch(_ATTACHED, word)) is not None and self._action(attached[1]) is not None:
                options.append((attached[1], attached[2]))
            elif (has_value := self._foreign(word, waiting)) is not None:
                options.append((_one_dash(word), self._value(word, waiting) if has_value else None))
            else:
                unknown.append(word)
        return options, operands, unknown

    def _may_be_foreign(self, options: list[tuple[str, str | None]]) -> bool:
        """Return whether the table of other VMMs' words is needed, whose loading takes longer than this."""
        consoles = [name for name, _ in options if name in _CONSOLES]
        return len(consoles) > len(set(consoles)) or any(
            name in _WITH_FOREIGN_VALUES
            or (name in _CONSOLES and (value or "").partition(":")[0] not in _OWN_TARGETS)
            or (name == "-accel" and value not in _OWN_ACCELERATORS)
            or self._action(name) is None
            or (name, bool(value)) == ("-s", True)
            for name, value in options
        )

    def _action(self, word: str) -> argparse.Action | None:
        """Return what an option is; as in QEMU, its words may have two dashes."""
        known = self._option_string_actions
        return known.get(word) or known.get(_one_dash(word)) or (known["-h"] if word == "-help" else None)

    def _foreign(self, word: str, waiting: list[str]) -> bool | None:
        """Return whether a word of another VMM has a value; None: it is nobody's."""
        if not self.machine_keys:
            return None
        from vmm.cli.foreign import has_value

        return has_value(_one_dash(word), waiting[-1] if waiting else None)

    def _value(self, word: str, waiting: list[str]) -> str:
        if not waiting:
            self.error(f"{word}: its value is missing")
        return waiting.pop()
