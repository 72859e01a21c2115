"""A machine at one moment: taken between two runs, and made to go on, any number of times, in machines like it."""

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vmm._native import lib
from vmm.config.parts import Clock
from vmm.errors import ConfigError, HostError
from vmm.kvm import state as kvm_state
from vmm.options import check_type
from vmm.platform.parts import CODE, VARIABLES
from vmm.ram import KeptRam
from vmm.run.snapshot_memory import PAGE_SIZE, SnapshotMemory

if TYPE_CHECKING:
    from vmm.config.machine import MachineConfig
    from vmm.run.whole import Whole

RAM = "ram"


class Snapshot:
    """A machine's state and memory; a context manager that gives the memory back.

    `vmm.Machine.snapshot` takes one, `vmm.Machine.restore` makes machines of it: any number, one after the other or
    side by side. `save` and `load` keep it in a file.

    Args:
        config: of the machine.
        state: all but its memory, as plain data (`vmm.bus.Device.state` says what that is).
        memory: the rest.

    Attributes:
        config: of the machine; a restored one keeps no variables in a file.
        state: what was taken.
        memory: RAM and images.
    """

    def __init__(self, config: "MachineConfig", state: dict[str, Any], memory: SnapshotMemory) -> None:
        self.config = config
        self.state = state
        self.memory = memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Snapshot of {self.config.firmware.path}, {len(self.state['vcpus'])} CPUs>"

    def close(self) -> None:
        """Give the memory back; machines that were restored go on."""
        self.memory.close()

    @classmethod
    def load(cls, path: "str | Path") -> Self:
        """Read what `save` wrote; the file is not needed any more afterwards.

        Raises:
            ConfigError: the file cannot be read, is none, of another version, or damaged.
            HostError: there is no memory for it.
        """
        from vmm.run import snapshot_file

        config, state, memory = snapshot_file.read(Path(path))
        try:
            with fitting():
                _check_loaded(config, state, memory)
                # What somebody else wrote makes a machine like any other: it writes into no file.
                config = without_outputs(config, state["accelerator"])
        except BaseException:
            memory.close()
            raise
        return cls(config, state, memory)

    def save(self, path: "str | Path") -> None:
        """Write it into a file, firmware and kernel included; zeros take no room. One that is there is replaced.

        Raises:
            HostError: the file cannot be written.
            ConfigError: the machine has a value that only a function of this process gives, or what is there is no
                regular file.
        """
        from vmm.run import snapshot_file

        snapshot_file.write(Path(path), self.config, self.state, self.memory)

    def map_ram(self) -> KeptRam:
        """The RAM, for one machine."""
        return KeptRam(self.memory.map(RAM), self.memory.filled(RAM))

    def map_images(self) -> Mapping[str, mmap.mmap]:
        """The images that there are, for one machine."""
        return {name: self.memory.map(name) for name in (CODE, VARIABLES) if name in self.memory.parts}

    def copy_disk(self, index: int) -> int:
        """Return the descriptor of a copy of a disk that is the machine's own, for one machine.

        Args:
            index: of the disk among the machine's.

        Raises:
            ConfigError: the snapshot has no such disk.
            HostError: there is no room for it.
        """
        with fitting():
            size, _ = self.state["disks"][index]
            disk = _disk(index)
            if not 0 <= self.memory.parts[disk][1] - size < PAGE_SIZE:
                raise ValueError(f"{disk} of {size} bytes")
        try:
            with tempfile.TemporaryFile(prefix="vmm-", buffering=0) as file:
                os.truncate(file.fileno(), size)
                self.memory.copy_to(disk, file.fileno())
                return os.dup(file.fileno())
        except OSError as error:
            raise HostError(
                f"no room in {tempfile.gettempdir()} for a disk of the snapshot: {(error.strerror or '').lower()}; "
                "TMPDIR names another place"
            ) from None


def take(config: "MachineConfig", accelerator: str, whole: "Whole") -> Snapshot:
    """Take a snapshot; no vCPU runs.

    Raises:
        ConfigError: the machine has a device that gives no state.
        HostError: there is not enough memory.
        KvmError: KVM does not give its state.
    """
    if config.clock is Clock.VIRTUAL:
        raise ConfigError("--clock virtual: no snapshot of a guest whose instructions are counted from power-on")
    with whole.io_lock:
        _check_devices(whole)
        platform = whole.platform.state()
        guest_ns, monotonic_ns = whole.clock(), time.monotonic_ns()
        tsc = kvm_state.save_tsc(whole.processors.vcpus[0], _tsc_offsets(whole))
        # io_lock until the memory is copied, too: a timer's callback may write to it.
        state = {
            "accelerator": accelerator,
            "cpuid": [list(entry) for entry in whole.processors.cpuid],
            "tsc": tsc,
            "guest_ns": guest_ns,
            "utc_ns": time.time_ns(),
            "vm": kvm_state.save_vm(whole.vm, guest_ns, monotonic_ns),
            "vcpus": _save_vcpus(whole),
            "platform": platform,
            "fw_cfg": None if whole.fw_cfg is None else whole.fw_cfg.state(),
            "fwctl": None if whole.fwctl is None else whole.fwctl.state(),
            "disks": [disk.identity() for disk in whole.platform.disks],
            "consoles": [console.state() for console in whole.consoles],
        }
        return Snapshot(without_outputs(config, accelerator), state, _copy_memory(whole))


def resume(snapshot: Snapshot, whole: "Whole", jump_ns: int) -> None:
    """Let a machine that was made with the snapshot's memory go on.

    Args:
        snapshot: what it becomes.
        whole: its parts; it has not run yet.
        jump_ns: how far its time is put forward.

    Raises:
        ConfigError: it cannot go on here.
        KvmError: KVM does not take its state.
    """
    with fitting():
        _resume(snapshot.state, whole, jump_ns)


_MISFITS = (
    AttributeError,
    BufferError,
    ImportError,
    LookupError,
    OverflowError,
    StopIteration,
    TypeError,
    ValueError,
    struct.error,
)
"""What comes of a value that has another type or size than expected."""


@contextmanager
def fitting() -> Iterator[None]:
    """Refuse a snapshot that has something else where this vmm looks for a part of a state.

    Raises:
        ConfigError: says what.
    """
    try:
        yield
    except _MISFITS as error:
        raise ConfigError(f"the snapshot does not fit this version of vmm: {error!r}; take it again") from error


def _check_loaded(config: object, state: object, memory: SnapshotMemory) -> None:
    """Refuse what would make no machine, or one that uses other memory or files than a snapshot's may."""
    from vmm.config.machine import MachineConfig

    if not isinstance(config, MachineConfig) or not isinstance(state, dict):
        raise TypeError(f"a snapshot of {type(config).__name__} and {type(state).__name__}")
    for option, path in config.input_files:
        check_type(path, option, str, Path)
    for drive in config.drives:
        check_type(drive.cache.direct, "cache", bool)
        if not drive.only_read:
            raise ValueError(f"{drive.option}: the guest may write to it")
    sizes = {RAM: config.memory, CODE: len(config.firmware.code)}
    if config.firmware.variables is not None:
        sizes[VARIABLES] = len(config.firmware.variables.data)
    for name, size in sizes.items():
        if memory.parts.get(name, (0, size))[1] != size:
            raise ValueError(f"{name} of {memory.parts[name][1]} bytes instead of {size}")
    if RAM not in memory.parts:
        raise KeyError(RAM)


def _resume(state: dict[str, Any], whole: "Whole", jump_ns: int) -> None:
    vcpus = whole.processors.vcpus
    for disk, identity in zip(whole.platform.disks, state["disks"], strict=True):
        if disk.identity() != identity:
            raise ConfigError(f"{disk.drive.option}: the image was changed since the snapshot was taken; take it again")
    with whole.io_lock:
        _set_time(whole, state, jump_ns)
        # It drives the wires of the chips that come next: see load_chips.
        whole.platform.restore(state["platform"])
        kvm_state.load_chips(whole.vm, state["vm"])
        msrs = kvm_state.MsrReader(vcpus[0])
        for index, its in enumerate(state["vcpus"]):
            _load_vcpu(whole, index, its, msrs)
        kvm_state.load_timers(whole.vm, state["vm"], whole.clock(), time.monotonic_ns(), jump_ns)
        if whole.fw_cfg is not None:
            whole.fw_cfg.restore(state["fw_cfg"])
        if whole.fwctl is not None:
            whole.fwctl.restore(state["fwctl"])
        for console, its in zip(whole.consoles, state["consoles"], strict=True):
            console.restore(its)


def check_host(snapshot: Snapshot, accelerator: str, cpuid: Sequence[tuple[Any, ...]], tsc_khz: int) -> None:
    """See whether the machine could go on here.

    Args:
        snapshot: what is to go on.
        accelerator: who would execute it.
        cpuid: of the first vCPU that this host would give it.
        tsc_khz: the frequency of its TSC.

    Raises:
        ConfigError: it cannot, and why.
    """
    state = snapshot.state
    if state["accelerator"] != accelerator:
        raise ConfigError(
            f"the snapshot was taken with -accel {state['accelerator']}; this host runs it with {accelerator}"
        )
    if state["cpuid"] != [list(entry) for entry in cpuid]:
        raise ConfigError("the snapshot was taken on another kind of CPU, or with another KVM; take it again here")
    if state["tsc"]["khz"] != tsc_khz:
        raise ConfigError(
            f"the snapshot's TSC counts {state['tsc']['khz']} kHz, this host's {tsc_khz} kHz; take it again here"
        )


def _check_devices(whole: "Whole") -> None:
    for disk in whole.platform.disks:
        if disk.is_written:
            raise ConfigError(
                f"no snapshot: {disk.drive.option}: it would not have what the guest wrote there; give readonly=on, or "
                "snapshot=on and take it before the first write"
            )
    for served in whole.platform.vhost:
        raise ConfigError(f"no snapshot: {served.backend.option}: another process has part of what the device is")
    known = set(map(id, whole.platform.devices.values()))
    for bus in whole.buses:
        for name, device in bus.devices():
            if id(device) not in known and device is not whole.fwctl and not device.is_part:
                raise ConfigError(f"no snapshot: {name} was added by hand, and a restored machine would lack it")


def _disk(index: int) -> str:
    """The name of the part that a disk is."""
    return f"disk {index}"


def _copy_memory(whole: "Whole") -> SnapshotMemory:
    images = whole.platform.images
    disks = {_disk(index): disk for index, disk in enumerate(whole.platform.disks) if disk.drive.folder}
    sizes = {RAM: whole.memory.size} | {name: len(image) for name, image in images.items()}
    memory = SnapshotMemory(sizes | {name: disk.size + -disk.size % PAGE_SIZE for name, disk in disks.items()})
    try:
        for name, disk in disks.items():
            memory.store_file(name, disk.fd)
        memory.store(RAM, whole.memory.ram, whole.memory.filled)
        for name, image in images.items():
            memory.store(name, image)
        memory.seal()
    except BaseException:
        memory.close()
        raise
    return memory


def _save_vcpus(whole: "Whole") -> list[dict[str, Any]]:
    msrs = kvm_state.MsrReader(whole.processors.vcpus[0])
    return [
        {
            "kvm": kvm_state.save_vcpu(vcpu, msrs),
            "softcpu": None if whole.softcpu is None else whole.softcpu.save_vcpu(core),
            "started": bool(core.started_ns),
            "start_watched": bool(core.start_watched),
        }
        for vcpu, core in zip(whole.processors.vcpus, whole.processors.cores, strict=True)
    ]


def _load_vcpu(whole: "Whole", index: int, state: dict[str, Any], msrs: kvm_state.MsrReader) -> None:
    vcpu, core = whole.processors.vcpus[index], whole.processors.cores[index]
    softcpu = whole.softcpu
    registers = softcpu is None or not softcpu.has_registers(state["softcpu"])
    kvm_state.load_vcpu(vcpu, state["kvm"], msrs, registers=registers, deadline=softcpu is None)
    if softcpu is not None:
        softcpu.restore_vcpu(core, state["softcpu"])
    if state["started"]:
        core.started_ns = time.monotonic_ns()
    if state["start_watched"]:
        vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
        core.start_watched = True


def _tsc_offsets(whole: "Whole") -> list[int]:
    if whole.softcpu is not None:
        return [whole.softcpu.get_tsc_offset(core) for core in whole.processors.cores]
    return [vcpu.get_tsc_offset() for vcpu in whole.processors.vcpus]


def _set_time(whole: "Whole", state: dict[str, Any], jump_ns: int) -> None:
    vcpus, cores = whole.processors.vcpus, whole.processors.cores
    offsets = kvm_state.tsc_offsets(vcpus[0], state["tsc"], jump_ns)
    whole.clock.set(state["guest_ns"] + jump_ns)
    for vcpu, core, offset in zip(vcpus, cores, offsets, strict=True):
        if whole.softcpu is None:
            vcpu.set_tsc_offset(offset)
        else:
            whole.softcpu.set_tsc_offset(core, offset)


def without_outputs(config: "MachineConfig", accelerator: str) -> "MachineConfig":
    """The machine as another one can be made beside it: no files that it writes, and the same accelerator."""
    from vmm.config.parts import Accelerator, Target

    firmware = config.firmware
    if firmware.variables is not None:
        firmware = firmware._replace(variables=firmware.variables._replace(persist=False))
    return config._replace(
        firmware=firmware,
        accel=Accelerator(accelerator),
        serial=Target(),
        debugcon=Target(),
        trace=None,
        profile=False,
        user=None,
        gdb=None,
        hold=False,
    )
