"""What a type checker says about programs that use vmm: `test_typing.py` compares. Never run."""

from pathlib import Path
from typing import reveal_type

from vmm import Machine, MachineConfig

Machine("ovmf", cpus=3, memory="512M", fw_cfg={"opt/a": b"1", "opt/b": Path("b")}, serial="file:log")
Machine(MachineConfig.create("seabios", cpus=2))
Machine("ovmf", cpu=3)  # E: Unexpected keyword argument "cpu" for "Machine"
Machine("ovmf", cpus="3")  # E: Argument "cpus" to "Machine" has incompatible type "str"; expected "int"
MachineConfig.create("ovmf", cpu=3)  # E: Unexpected keyword argument "cpu" for "create" of "MachineConfig"

with Machine() as machine:
    reveal_type(machine.run(until="Shell>").reached)  # N: Revealed type is "bool"
    reveal_type(machine.serial.text())  # N: Revealed type is "str"
    machine.serial.txt()  # E: "Stream" has no attribute "txt"; maybe "text"?
