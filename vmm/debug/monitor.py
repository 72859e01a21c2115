"""The ``monitor`` commands of a debugger: what the machine knows and the protocol has no packet for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.config.parts import Sandboxing
from vmm.debug.images import Images, table
from vmm.errors import VmmError
from vmm.legible import legible

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.debug.target import Debuggee, Target

_EVENTS = 32
"""How much of the timeline ``monitor trace`` shows."""


class Monitor:
    """Answers them, for one machine.

    Args:
        machine: the machine.
        target: the same, standing still.

    Attributes:
        code: bits of the code that the next debugger is to be told of; None: those of the code that there is then.
    """

    def __init__(self, machine: Debuggee, target: Target) -> None:
        self.code: int | None = None
        self._machine = machine
        self._target = target
        self._loaded = Images(machine.memory, machine.config.firmware, machine.config.symbols)
        self._commands: dict[str, tuple[str, Callable[[str, int], str]]] = {
            "help": ("this list", self._help),
            "registers": ("[VCPU]: all of a vCPU, with segments and tables", self._registers),
            "translate": ("ADDRESS: the walk through the page tables", self._translate),
            "reset": ("the machine, which stays held; then, in gdb: maintenance flush register-cache", self._reset),
            "plug-cpu": ("[INDEX]: plug a CPU in, for which -smp maxcpus= leaves room", self._plug_cpu),
            "unplug-cpu": ("INDEX: ask the guest's system to let go of a CPU", self._unplug_cpu),
            "snapshot": ("NAME: keep the machine in a new file of the folder that it was started in", self._snapshot),
            "code": ("16|32|64: what the next debugger is told of, whatever code there is then", self._code),
            "smram": ("on|off: memory is read with SMRAM and TSEG in it, though they are closed", self._smram),
            "images": (
                "[ADDRESS|gdb]: what is loaded, what an address is in, or commands that load symbols",
                self._images,
            ),
            "fw_cfg": ("[NAME]: the items of fw_cfg and what was read, or the contents of one", self._fw_cfg),
            "trace": (f"the last {_EVENTS} things that happened, and when", self._trace),
        }

    def run(self, command: str, vcpu: int) -> str:
        """Run a command line for the vCPU that the debugger looks at; what it prints, each line with its end."""
        name, _, argument = command.strip().partition(" ")
        matches = [known for known in self._commands if known.startswith(name)] if name else ["help"]
        if len(matches) != 1 and name not in self._commands:
            return f"{legible(name)}: no such command; monitor help lists them\n"
        text = self._commands[name if name in self._commands else matches[0]][1](argument.strip(), vcpu)
        return f"{text}\n" if text else ""

    def _help(self, argument: str, vcpu: int) -> str:
        return "\n".join(f"monitor {name:10} {text}" for name, (text, _) in self._commands.items())

    def _registers(self, argument: str, vcpu: int) -> str:
        index = int(argument) if argument.isdecimal() else vcpu
        if not 0 <= index < len(self._target.vcpus):
            return f"there is no vCPU {index}"
        return f"vCPU {index}: {self._target.state(index).registers.text}"

    def _translate(self, argument: str, vcpu: int) -> str:
        try:
            linear = int(argument, 0)
        except ValueError:
            return "an address is wanted: monitor translate 0xfffffff0"
        return self._target.walk(vcpu, linear).text

    def _reset(self, argument: str, vcpu: int) -> str:
        self._machine.reset()
        return ""

    def _plug_cpu(self, argument: str, vcpu: int) -> str:
        try:
            return f"CPU {self._machine.plug_cpu(int(argument, 0) if argument else None)} is there"
        except ValueError:
            return "an index is wanted: monitor plug-cpu 3"
        except VmmError as error:
            return legible(str(error))

    def _unplug_cpu(self, argument: str, vcpu: int) -> str:
        try:
            self._machine.unplug_cpu(int(argument, 0))
        except ValueError:
            return "an index is wanted: monitor unplug-cpu 3"
        except VmmError as error:
            return legible(str(error))
        return ""

    def _snapshot(self, argument: str, vcpu: int) -> str:
        # Whoever may debug the guest may not therefore write where he likes, or over what is there.
        if "/" in argument or not argument.isprintable() or os.path.lexists(argument or "."):
            return "the name of a new file is wanted: monitor snapshot here.snap"
        if self._machine.config.sandbox is Sandboxing.WHOLE:
            return "this process may make no file: start it with --sandbox off"
        try:
            with self._machine.snapshot_while_held() as snapshot:
                snapshot.save(argument)
        except VmmError as error:
            return legible(str(error))
        return f"the machine is in {argument}: vmm boot --from {argument}"

    def _code(self, argument: str, vcpu: int) -> str:
        if argument not in {"16", "32", "64"}:
            return "16, 32 or 64 is wanted"
        self.code = int(argument)
        return "'disconnect' and connect again"

    def _smram(self, argument: str, vcpu: int) -> str:
        if argument not in {"on", "off"}:
            return "on or off is wanted"
        self._target.sees_smram = argument == "on"
        return ""

    def _images(self, argument: str, vcpu: int) -> str:
        values = self._target.state(vcpu).registers.values
        if not argument:
            return table(self._loaded.all(values))
        if argument == "gdb":
            from vmm.debug.gdb_file import gdb_commands  # few ask

            return gdb_commands(self._loaded.all(values)).rstrip("\n")
        try:
            address = int(argument, 0)
        except ValueError:
            return "an address is wanted: monitor images 0xfffffff0"
        place = self._loaded.place(values)(address)
        return "in no image that is known" if place is None else legible(str(place))

    def _fw_cfg(self, argument: str, vcpu: int) -> str:
        if self._machine.fw_cfg is None:
            return "this machine has fwctl"
        if argument:
            try:
                contents = self._machine.fw_cfg.contents(argument)
            except KeyError:
                return f"there is no item {legible(argument)}"
            return _dump(contents)
        lines = [f"{'item':<40} {'key':>6} {'size':>8} {'reads':>8} {'bytes':>10}"]
        lines += (
            f"{item.name:<40} {item.key:#06x} {item.size:>8} {item.reads:>8} {item.bytes_read:>10}"
            for item in self._machine.trace.items()
        )
        return legible("\n".join(lines), keep="\n")

    def _trace(self, argument: str, vcpu: int) -> str:
        events = self._machine.timeline[-_EVENTS:]
        if not events:
            return "nothing has happened yet"
        return legible("\n".join(f"{event.t_s:10.6f} {event.event}" for event in events), keep="\n")


def _dump(data: bytes) -> str:
    rows = (data[at : at + 16] for at in range(0, min(len(data), 1024), 16))
    text = "\n".join(f"{16 * number:08x}  {row.hex(' ')}" for number, row in enumerate(rows))
    return text if len(data) <= 1024 else f"{text}\n({len(data)} bytes)"
