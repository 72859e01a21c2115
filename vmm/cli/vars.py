"""``vmm vars``: what is in a VARS file, and changes to it, while no machine has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cli import EXIT_STATUSES, say
from vmm.cli.parser import Parser
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from vmm.firmware.variable_list import Listed

DESCRIPTION = """\
List the UEFI variables of a VARS file, set or delete one, or enroll a certificate for Secure Boot: it becomes platform
key (PK), key exchange key (KEK), and the one in db that signs what may start. virt-firmware does the work.
"""

EXAMPLES = """
examples:
  vmm vars list my_vars.fd                     all variables
  vmm vars set my_vars.fd Timeout --hex 0000   a value, in bytes
  vmm vars delete my_vars.fd Timeout
  vmm vars enroll my_vars.fd my.pem            Secure Boot with a key of one's own

"""

SCHEMA = "vmm-vars/1"
"""Names what --json prints; changes when a key goes or means something else."""

ACTIONS = ("list", "set", "delete", "enroll")


def parser() -> Parser:
    """Return the command's options."""
    made = Parser("vars", "ACTION FILE [NAME|CERTIFICATE]", DESCRIPTION, f"{EXAMPLES}{EXIT_STATUSES}")
    add = made.add_argument
    add("action", metavar="ACTION", help="list, set, delete or enroll")
    add("file", metavar="FILE", help="the VARS file")
    add("what", metavar="NAME", nargs="?", help="the variable; of enroll, a certificate (X.509, in PEM format)")
    add("--hex", metavar="BYTES", help="set: the value, as hexadecimal digits")
    add("--data", metavar="PATH", help="set: the value, as a file's bytes")
    add("--guid", metavar="GUID", help="set: the namespace of a new variable (default: UEFI's own)")
    add(
        "--microsoft", action="store_true", help="enroll: Microsoft's certificates, too, which sign distributions' shim"
    )
    add("--json", action="store_true", help="list: print a JSON object instead of text")
    return made


def run(words: list[str]) -> int:
    """Do what a command line asks for; return the exit status."""
    arguments = parser().parse_args(words)
    if arguments.action not in ACTIONS:
        raise ConfigError(f"vars {arguments.action}: not known; known are {', '.join(ACTIONS)}")
    if (arguments.what is None) != (arguments.action == "list"):
        wrong = "takes a file alone" if arguments.what else "of what? See --help"
        raise ConfigError(f"vars {arguments.action}: {wrong}")
    value = _value(arguments.hex, arguments.data) if arguments.action == "set" else b""
    from vmm.firmware.variable_list import VariableList

    variables = VariableList(Path(arguments.file))
    if arguments.action == "list":
        _print(variables.list(), as_json=arguments.json)
        return 0
    if arguments.action == "set":
        variables.set(arguments.what, value, arguments.guid)
    elif arguments.action == "delete":
        variables.delete(arguments.what)
    else:
        variables.enroll(Path(arguments.what), microsoft=arguments.microsoft)
    variables.write()
    say(f"vmm: {arguments.file}: {arguments.action} {arguments.what}: done")
    return 0


def _value(digits: str | None, path: str | None) -> bytes:
    if (digits is None) == (path is None):
        raise ConfigError("vars set: the value is either --hex BYTES or --data PATH")
    if digits is None:
        from vmm import inputs

        return bytes(inputs.read_file(Path(str(path)), "--data", limit=1 << 16))
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(f"--hex {digits}: not pairs of hexadecimal digits") from None


def _print(listed: list[Listed], *, as_json: bool) -> None:
    from vmm.legible import legible

    if as_json:
        rows = [{**each._asdict(), "data": each.data.hex()} for each in listed]
        print(json.dumps({"schema": SCHEMA, "variables": rows}, indent=2))
        return
    width = max((len(each.name) for each in listed), default=0)
    for each in listed:
        print(legible(f"{each.name:{width}}  {each.value or f'{len(each.data)} bytes'}"))
