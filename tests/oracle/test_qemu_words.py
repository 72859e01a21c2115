"""Debian's QEMU says which words its command line has: none of them is unknown to ours, or read in another way."""

import re
import subprocess
from argparse import Namespace

from vmm.cli.foreign import has_value
from vmm.cli.machine_arguments import add_machine_arguments
from vmm.cli.parser import Parser
from vmm.errors import ConfigError

QEMU = "qemu-system-x86_64"


STANDS_FOR = {"-pflash": {"drive"}, "-no-hpet": {"machine"}, "-no-acpi": {"machine"}}
"""Words for what another option of ours says."""


def words_of_qemu() -> set[str]:
    text = subprocess.run([QEMU, "-help"], capture_output=True, text=True, check=True).stdout
    words = {word for line in text.splitlines() for word in re.findall(r"^-[\w-]+(?:/-\w+)?", line)}
    return {f"-{part.lstrip('-')}" for word in words for part in word.split("/")}


def qemu_takes_a_value(word: str) -> bool:
    """Whether the word swallows one that QEMU does not have, and complains about the next."""
    run = subprocess.run(
        [QEMU, word, "-no-such", "-not-either"], capture_output=True, text=True, timeout=60, check=False
    )
    if run.returncode == 0:  # it printed a help text or a version and was done
        return False
    refused = re.search(r"(-no-such|-not-either): invalid option", run.stderr)
    assert refused is not None, run.stderr
    return refused[1] == "-not-either"


def test_every_word_is_known_and_takes_what_it_takes_in_qemu() -> None:
    parser = Parser("boot", "", "", "")
    add_machine_arguments(parser)
    words = words_of_qemu()
    assert len(words) > 100
    for word in sorted(words):
        action = parser._action(word)
        ours = action.nargs != 0 if action is not None else has_value(word, None)
        assert (word, ours) == (word, qemu_takes_a_value(word))


def test_every_word_is_taken_noted_or_refused_by_its_name() -> None:
    """No word is taken for another option, with or without its value, nor its value for FIRMWARE."""
    parser = Parser("boot", "", "", "")
    add_machine_arguments(parser)
    for word in sorted(words_of_qemu() - {"-h", "-help"}):
        action = parser._action(word)
        has_one = action.nargs != 0 if action is not None else has_value(word, None)
        arguments, refusal = parsed(parser, [word, *(["on"] if has_one else []), "probe"])
        if arguments is None:
            assert refusal.startswith(f"{word} on: " if has_one else f"{word}: "), word
            continue
        assert arguments.firmware == "probe", word
        names = [option for option in parser.given(arguments) if option != "--help"]
        changed = {parser._option_string_actions[option].dest for option in names}
        own = {action.dest} if action is not None else STANDS_FOR.get(word, set())
        assert (word, changed) == (word, own)
        assert own or any(note.startswith(word) for note in arguments.notes), word


def parsed(parser: Parser, words: list[str]) -> tuple[Namespace | None, str]:
    """What became of a command line, or why nothing did."""
    try:
        return parser.parse(words, "firmware"), ""
    except ConfigError as error:
        return None, str(error)
