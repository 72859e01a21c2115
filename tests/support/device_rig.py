"""Devices without a virtual machine: the real buses and guest memory of the C core, lines and power written down."""

from typing import Any

from vmm._native import ffi, lib

from vmm.bus import Bus, IoLock
from vmm.devices.clock import GuestClock
from vmm.devices.timer import TimerService
from vmm.firmware.images import FirmwareImages
from vmm.memory import GuestMemory
from vmm.platform import Parts

MIB = 1 << 20


class _NoKvm:
    """Memory slots without a kernel behind them."""

    def set_user_memory_region(self, slot: int, gpa: int, size: int, memory: int, *, read_only: bool = False) -> None:
        pass

    def delete_memory_region(self, slot: int) -> None:
        pass


class Power:
    def __init__(self) -> None:
        self.events: list[str] = []

    def reset(self, reason: str) -> None:
        self.events.append(f"reset: {reason}")

    def suspend(self) -> None:
        self.events.append("suspend")

    def power_off(self) -> None:
        self.events.append("off")

    def remove_cpu(self) -> None:
        self.events.append("a CPU is gone")

    def panic(self) -> None:
        self.events.append("panic")


class ManualTimers(TimerService):
    """Time passes only when the test says so, and callbacks run on the test's thread."""

    def __init__(self, lock: IoLock, start_ns: int = 0) -> None:
        self.failures: list[BaseException] = []
        super().__init__(lock, self.failures.append, GuestClock())
        self.clock.stand(start_ns)

    @property
    def now(self) -> int:
        return self.clock()

    @now.setter
    def now(self, nanoseconds: int) -> None:
        self.clock.stand(nanoseconds)

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, stopping at each deadline on the way."""
        end = self.now + nanoseconds
        while (wait := self.run_due()) is not None and self.now + wait <= end:
            self.now += wait
        self.now = end
        self.run_due()


LOW_RAM = 0xB000_0000
"""Most RAM below 4 GiB."""


class Rig:
    def __init__(self, ram: int = 16 * MIB, cuts: tuple[int, ...] = ()) -> None:
        self.core = ffi.gc(lib.vmm_vm_new(-1), lib.vmm_vm_free)
        self.lock = IoLock(self.core)
        self.failures: list[BaseException] = []
        self.ports = Bus("port", ffi.addressof(self.core, "ports"), self.lock, self.failures.append)
        self.mmio = Bus("MMIO", ffi.addressof(self.core, "mmio"), self.lock, self.failures.append)
        self.memory = GuestMemory(_NoKvm(), self.core, ram, LOW_RAM, cuts=cuts)  # type: ignore[arg-type]
        self.power = Power()
        self.clock = GuestClock()
        self.lines: dict[int, bool] = {}
        self.edges: list[tuple[int, bool]] = []
        self.messages: list[tuple[int, int]] = []
        self.printed = bytearray()
        self._callbacks = (
            ffi.callback("void(void *, uint32_t, bool)", lambda _, gsi, level: self.irq(gsi, level)),
            ffi.callback("void(void *, uint64_t, uint32_t)", lambda _, address, data: self.msi(address, data)),
        )
        self.sink = ffi.new("struct interrupt_sink *", {"line": self._callbacks[0], "message": self._callbacks[1]})

    def parts(self, firmware: FirmwareImages, **fields: Any) -> Parts:
        """What a board is built of: this rig's buses, lines and power."""
        return Parts(
            ports=self.ports,
            mmio=self.mmio,
            memory=self.memory,
            ram_low=self.memory.low_size,
            firmware=firmware,
            irq=self.irq,
            msi=self.msi,
            power=self.power,
            clock=self.clock,
            serial=self.printed.extend,
            debugcon=self.printed.extend,
            core=self.core,
            **({"ram_high": self.memory.high_size, "cpus": 1} | fields),
        )

    def irq(self, gsi: int, level: bool) -> None:
        if self.lines.get(gsi, False) != level:
            self.edges.append((gsi, level))
        self.lines[gsi] = level

    def msi(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def inb(self, port: int) -> int:
        return self.inp(port, 1)

    def outb(self, port: int, value: int) -> None:
        self.out(port, 1, value)

    def inp(self, port: int, size: int) -> int:
        return int.from_bytes(self._access("ports", port, size, 1, None), "little")

    def ins(self, port: int, size: int, count: int) -> bytes:
        return self._access("ports", port, size, count, None)

    def out(self, port: int, size: int, value: int) -> None:
        self._access("ports", port, size, 1, value.to_bytes(size, "little"))

    def outs(self, port: int, size: int, data: bytes) -> None:
        self._access("ports", port, size, len(data) // size, data)

    def load(self, gpa: int, size: int) -> int:
        """As the guest: from memory if it is mapped, else from the MMIO bus."""
        data = bytearray(size)
        memory = ffi.addressof(self.core, "memory")
        if lib.guest_memory_read(memory, gpa, ffi.from_buffer(data), size) == size:
            return int.from_bytes(data, "little")
        return int.from_bytes(self._access("mmio", gpa, size, 1, None), "little")

    def store(self, gpa: int, size: int, value: int) -> None:
        data = value.to_bytes(size, "little")
        if lib.guest_memory_write(ffi.addressof(self.core, "memory"), gpa, data, size) != size:
            self._access("mmio", gpa, size, 1, data)

    in_smm = False
    """Whether what follows is done by a vCPU in system management mode."""

    def _access(self, table: str, address: int, size: int, count: int, data: bytes | None) -> bytes:
        """One access; None reads."""
        buffer = ffi.new("uint8_t[]", data if data is not None else size * count)
        access: Any = ffi.new(
            "struct io_access *",
            {
                "address": address,
                "data": buffer,
                "size": size,
                "count": count,
                "is_write": data is not None,
                "smm": self.in_smm,
            },
        )
        with self.lock:
            lib.io_table_access(ffi.addressof(self.core, table), access)
        return bytes(ffi.buffer(buffer, size * count))
