"""``vmm completion``: what makes a shell complete vmm's commands, options, files and names of firmware."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from vmm import installation
from vmm.cli import COMMANDS, module_of
from vmm.cli.parser import Parser
from vmm.errors import ConfigError, ExitStatus, HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SHELLS = ("bash", "zsh", "fish")

DESCRIPTION = """\
Print a script that makes a shell complete vmm's commands and options, names of firmware, and files.
"""

EPILOG = """\
where it goes:
  bash  vmm completion bash > ~/.local/share/bash-completion/completions/vmm
  zsh   vmm completion zsh > ~/.zfunc/_vmm        with fpath+=~/.zfunc before compinit in ~/.zshrc
  fish  vmm completion fish > ~/.config/fish/completions/vmm.fish

exit status:
  0  the script is printed
  2  wrong usage
  4  shtab, which makes it, is not installed
"""

_WORDS: Mapping[str, Sequence[str]] = {
    "-accel": ("auto", "kvm", "kvm+softcpu", "softcpu"),
    "-debugcon": ("stdio", "none"),
    "--dispatch": ("c", "python"),
    "-machine": ("auto", "q35", "pc", "bhyve"),
    "-serial": ("stdio", "none"),
    "--mode": ("real16", "protected32", "long64", "user64"),
    "-device": ("vmgenid", "vmcoreinfo", "pvpanic"),
    "--terminal": ("auto", "pcansi", "vt100", "vt100plus", "vtutf8", "ttyterm", "linux", "xtermr6", "vt400", "sco"),
}
"""What an option's value may be, or begin with."""


def parser() -> Parser:
    """Return the command's options."""
    return Parser("completion", "|".join(SHELLS), DESCRIPTION, EPILOG)


def run(words: list[str]) -> int:
    """Print the script for a shell."""
    shell = parser().parse(words, "shell").shell
    if shell not in SHELLS:
        raise ConfigError(f"vmm completion {shell or '…'}: for which shell? known are {', '.join(SHELLS)}")
    try:
        import shtab  # of the extra [completion]
    except ImportError:
        raise HostError(f"shell completion needs shtab: {installation.extra_remedy('completion')}") from None
    script = shtab.complete(_everything(shtab.FILE), shell)
    if shell == "fish":
        script = re.sub(r" -s (?=[\w-]{2,} )", " -o ", script)  # fish's name for long options with one dash
    print(script)
    return ExitStatus.OK


def _everything(file: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Return one parser of all commands, whose actions say how they are completed."""
    whole = argparse.ArgumentParser("vmm", description="boot firmware on KVM")
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers(metavar="COMMAND")
    operands = _operands(file)
    for name, summary in COMMANDS.items():
        options = module_of(name).parser()
        # parse takes them apart from the options, so that argparse does not know them.
        for number, how in enumerate(operands.get(name, ())):
            vars(options.add_argument(f"operand{number}", nargs="?", help="")).update(how)
        for action in options._actions:  # noqa: SLF001  # shtab reads them, too
            if action.dest == "image":
                vars(action).update(operands["boot"][0])
            elif action.metavar in {"PATH", "FILE", "DIR"}:
                vars(action)["complete"] = file
            elif action.option_strings and action.option_strings[0] in _WORDS:
                action.choices = _WORDS[action.option_strings[0]]
        commands.add_parser(name, parents=[options], add_help=False, help=summary, description=summary)
    commands.add_parser("help", help="tell about a command").add_argument("command", choices=list(COMMANDS))
    return whole


def _operands(file: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the operands of each command: attributes of their actions."""
    from vmm.cli.bench import KINDS  # few ask for completion
    from vmm.cli.verify import LINUX
    from vmm.firmware import guests, load

    named = _names_and_files("_vmm_firmware", dict.fromkeys([*load.NAMES, *guests.names()]), file)
    verified = _names_and_files("_vmm_verified", [LINUX, "ovmf", "seabios"], file)
    return {
        "boot": [{"complete": named}],
        "verify": [{"complete": verified}, {"complete": verified}],
        "bench": [{"choices": KINDS}],
        "completion": [{"choices": SHELLS}],
    }


def _names_and_files(function: str, names: Iterable[str], file: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by shell, how to complete what is a name or a file; the function is defined there for that."""
    words = " ".join(names)
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{words} {file['fish']}",
        "preamble": {
            "bash": f'{function}() {{\n  compgen -W "{words}" -- "$1"\n  {file["bash"]} "$1"\n}}\n',
            "zsh": f"{function}() {{\n  _alternative 'names:firmware:({words})' 'files:file:{file['zsh']}'\n}}\n",
        },
    }
