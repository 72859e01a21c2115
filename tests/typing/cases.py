"""What a type checker says about programs that use vmm: `test_typing.py` compares. Never run."""

import re
from pathlib import Path
from typing import reveal_type

from vmm import Machine, MachineConfig

Machine("ovmf", cpus=3, memory="512M", fw_cfg={"opt/a": b"1", "opt/b": Path("b")}, serial="file:log")
Machine(MachineConfig.create("seabios", cpus=2))
Machine("ovmf", cpuss=3)  # E: Unexpected keyword argument "cpuss" for "Machine"
Machine("ovmf", cpus="3")  # E: Argument "cpus" to "Machine" has incompatible type "str"; expected "int | None"
MachineConfig.create("ovmf", cpuss=3)  # E: Unexpected keyword argument "cpuss" for "create" of "MachineConfig"

with Machine() as machine:
    reveal_type(machine.run(until="Shell>").reached)  # N: Revealed type is "bool"
    reveal_type(machine.serial.text())  # N: Revealed type is "str"
    machine.serial.txt()  # E: "Stream" has no attribute "txt"; maybe "text"?
    reveal_type(machine.expect("Shell>").match)  # N: Revealed type is "re.Match[str]"
    reveal_type(machine.expect([b"a", re.compile(b"b")], deadline=5).before)  # N: Revealed type is "bytes"
    reveal_type(machine.expect(["a", re.compile("b")], deadline=5).which)  # N: Revealed type is "int"
    machine.send_keys("up", 2)  # E: Argument 2 to "send_keys" of "Runnable" has incompatible type "int"; expected "str"
