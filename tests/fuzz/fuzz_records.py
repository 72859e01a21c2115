"""What files that a run, a person or a guest wrote may contain when they are read again: one call an input.

It raises where something was raised that no such input should lead to.
"""

import json
import random
import struct
from contextlib import suppress
from functools import cache
from typing import Any

from fuzz_inputs import number, scratch, spoiled

from vmm import Machine, MachineConfig
from vmm.cli import diff
from vmm.cli.script import read_script
from vmm.disks import fat
from vmm.errors import VmmError
from vmm.firmware.variable_list import VariableList
from vmm.legible import legible
from vmm.report import compare
from vmm.report.collect import collect
from vmm.run.virtual_time import read_recording

ODD: tuple[Any, ...] = (None, True, -1, 0, 1 << 64, 1e308, "", "\x1b[2J", [], {}, [[]], {"a": 1})
STEPS = (
    "expect a.*b", "expect (", "send a\\rb\\x41", "send \\", "send-line", "keys up f1", "keys nothing", "timeout 5",
    "timeout -1", "suspend", "wakeup", "power-off", "power-button", "plug-cpu 1", "unplug-cpu 1", "snapshot a.snap",
    "# nothing", "",
)  # fmt: skip


@cache
def report() -> str:
    """That of a run."""
    with Machine("exit", accel="kvm", memory="16M") as machine:
        return json.dumps(collect(machine, machine.run(deadline=60)))


@cache
def variables() -> bytes:
    """A VARS file."""
    found = MachineConfig.create("ovmf", accel="kvm").firmware.variables
    assert found is not None
    return bytes(found.data)


def altered(chance: random.Random, value: Any) -> Any:
    """A report with something else in some places."""
    if chance.randrange(40) == 0:
        return chance.choice(ODD)
    if isinstance(value, dict):
        return {key: altered(chance, each) for key, each in value.items() if chance.randrange(200)}
    if isinstance(value, list):
        return [altered(chance, each) for each in value]
    return value


def records(chance: random.Random) -> None:
    """A recording, a script, a report, a VARS file are refused in a line, or are one; a FAT volume never is."""
    lines = [
        json.dumps({"instructions": number(chance), "time_ns": number(chance), **said}).encode()
        for said in chance.choices(({"type": "a\xff"}, {"press": "power-button"}, {"type": 1}, {}), k=6)
    ]
    recording = b"\n".join(sorted(lines))
    with suppress(VmmError):
        read_recording(spoiled(chance, recording) if chance.randrange(2) else recording)
    path = scratch() / "record"
    script = "\n".join(chance.choices(STEPS, k=chance.randrange(8))).encode()
    path.write_bytes(spoiled(chance, script) if chance.randrange(2) else script)
    with suppress(VmmError):
        read_script(str(path), chance.choice(("auto", "vt100")))
    text = json.dumps(altered(chance, json.loads(report())))
    path.write_bytes(spoiled(chance, text.encode()) if chance.randrange(4) == 0 else text.encode())
    with suppress(VmmError):
        found = diff._report(path)
        list(compare.text([found], [json.loads(report())], legible))
        list(compare.text([json.loads(report())] * 2, [found] * 2, legible))
    if chance.randrange(8) == 0:
        data = variables()
        head = spoiled(chance, data[:0x1000]).ljust(0x1000, b"\xff")[:0x1000]
        path.write_bytes(head + data[0x1000:])
        with suppress(VmmError):
            VariableList(path).list()
    volume = fat_volume(chance)
    fat.head_of_file(lambda at, size: volume[at : at + size], ("efi", "boot", "bootx64.efi"), 64)
    fat.long_names(lambda at, size: volume[at : at + size], ("efi",))


def fat_volume(chance: random.Random) -> bytes:
    """A boot sector, FATs and directories whose numbers make little sense."""
    made = bytearray(chance.randbytes(0x8000) if chance.randrange(2) else bytes(0x8000))
    fields = [512, chance.choice((0, 1, 8, 255)), chance.choice((1, number(chance, 16))), chance.choice((1, 2, 255))]
    fields += [
        chance.choice((0, 16, number(chance, 16))),
        number(chance, 16),
        chance.choice((0, 1, number(chance, 16))),
    ]
    struct.pack_into("<HBHBHHxH", made, 11, *fields)
    for at in (32, 36, 44):
        struct.pack_into("<I", made, at, chance.choice((0, 2, number(chance, 32))))
    for at in range(0x400, 0x8000, 0x200):
        if chance.randrange(3) == 0:
            name = chance.choice((b"EFI        ", b"BOOT       ", b"BOOTX64 EFI", b"A\0e\0f\0i\0\0\0\xff"))
            kind = chance.choice((0x10, 0x0F, 0x20, 0x08))
            made[at : at + 32] = struct.pack("<11sB8xH4xHI", name, kind, 0, chance.randrange(8), number(chance, 32))
    return bytes(made)
