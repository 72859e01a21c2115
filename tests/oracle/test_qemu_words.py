"""Debian's QEMU says which words its command line has: none of them is unknown to ours, or read in another way."""

import re
import subprocess

from vmm.cli.foreign import has_value
from vmm.cli.machine_arguments import add_machine_arguments
from vmm.cli.parser import Parser

QEMU = "qemu-system-x86_64"


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
