"""A machine that stands still, as a debugger reads and writes it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vmm.cpu.paging import Walk, walk
from vmm.debug.registers import State

if TYPE_CHECKING:
    from vmm.config.machine import MachineConfig
    from vmm.devices.fw_cfg import FwCfg
    from vmm.kvm import Vcpu
    from vmm.memory import GuestMemory
    from vmm.run.snapshot import Snapshot
    from vmm.run.timeline import TimelineEvent
    from vmm.run.trace import Trace
    from vmm.softcpu.engine import SoftwareCpu

_PAGE = 4096


class Debuggee(Protocol):
    """The machine, as far as a debugger looks at it; `vmm.machine.Machine` has more, and documents these."""

    @property
    def config(self) -> "MachineConfig": ...  # noqa: D102 - see above, for all of them

    @property
    def vcpus(self) -> "Sequence[Vcpu]": ...  # noqa: D102

    @property
    def memory(self) -> "GuestMemory": ...  # noqa: D102

    @property
    def softcpu(self) -> "SoftwareCpu | None": ...  # noqa: D102

    @property
    def fw_cfg(self) -> "FwCfg | None": ...  # noqa: D102

    @property
    def trace(self) -> "Trace": ...  # noqa: D102

    def reset(self) -> None: ...  # noqa: D102

    def plug_cpu(self, index: int | None = None) -> int: ...  # noqa: D102

    def unplug_cpu(self, index: int) -> None: ...  # noqa: D102

    def snapshot_while_held(self) -> "Snapshot": ...  # noqa: D102

    @property
    def timeline(self) -> "list[TimelineEvent]": ...  # noqa: D102


class Target:
    """The processors and the memory of a machine, while no vCPU runs.

    Args:
        vcpus: by index.
        cores: the ``struct vmm_vcpu`` of each.
        memory: of the machine.

    Attributes:
        sees_smram: memory is read as system management mode sees it: with SMRAM and TSEG, though they are closed.
    """

    def __init__(self, vcpus: "Sequence[Vcpu]", cores: Sequence[Any], memory: "GuestMemory") -> None:
        self.vcpus = vcpus
        self.cores = cores
        self.memory = memory
        self.sees_smram = False
        self._states: dict[int, State] = {}

    def state(self, index: int) -> State:
        """The registers of a vCPU; read once until `forget`."""
        if index not in self._states:
            self._states[index] = State(self.vcpus[index], started=self.has_started(index))
        return self._states[index]

    def forget(self) -> None:
        """The machine is about to run."""
        self._states.clear()

    def has_started(self, index: int) -> bool:
        """Whether a vCPU has executed anything."""
        return bool(self.cores[index].started_ns)

    def walk(self, index: int, linear: int) -> Walk:
        """How the page tables of a vCPU translate a linear address."""
        return walk(linear, self.state(index).registers.values, self._read)

    def gpa(self, index: int, linear: int) -> int | None:
        """The guest physical address of a linear one; None: there is none."""
        return self.walk(index, linear).gpa

    def read(self, index: int, address: int, size: int, *, physical: bool) -> bytes:
        """Memory as a vCPU sees it, or by guest physical address: ``size`` bytes, or as many as there are from there.

        Raises:
            ValueError: there is no memory at ``address``.
        """
        data = bytearray()
        while len(data) < size:
            at = address + len(data)
            length = min(size - len(data), _PAGE - at % _PAGE)
            try:
                data += self._read(self._resolve(index, at, physical=physical), length)
            except ValueError:
                if not data:
                    raise
                break
        return bytes(data)

    def write(self, index: int, address: int, data: bytes, *, physical: bool) -> None:
        """Store ``data``, as `read` finds it.

        Raises:
            ValueError: somewhere there is no memory that can be written; what is in front of it was.
        """
        done = 0
        while done < len(data):
            at = address + done
            length = min(len(data) - done, _PAGE - at % _PAGE)
            self.memory.write(self._resolve(index, at, physical=physical), data[done : done + length])
            done += length

    def _read(self, gpa: int, size: int) -> bytes:
        return self.memory.read_in_smm(gpa, size) if self.sees_smram else self.memory.read(gpa, size)

    def _resolve(self, index: int, address: int, *, physical: bool) -> int:
        gpa = address if physical else self.gpa(index, address)
        if gpa is None or gpa >> 52:
            raise ValueError(f"no memory at {address:#x}")
        return gpa
