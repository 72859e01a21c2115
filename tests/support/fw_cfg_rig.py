"""fw_cfg without a virtual machine: some RAM, a port table, and the device behind it."""

import struct
from typing import Any, Self

from vmm._native import ffi, lib

from vmm.bus import Bus, IoLock
from vmm.devices.fw_cfg import FwCfg
from vmm.handoff.interface import attach_fw_cfg
from vmm.layout import PORT_FW_CFG_NOTES

RAM_SIZE = 1 << 20
DESCRIPTOR = 0x1000
BUFFER = 0x2000

ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16


class Rig:
    """RAM at GPA 0 and an fw_cfg; register items on `device`, then `start`."""

    def __init__(self, *, dma: bool = True, ram_size: int = RAM_SIZE, coalesced: bool = False) -> None:
        self.core = ffi.gc(lib.vmm_vm_new(-1), lib.vmm_vm_free)
        self.ring = ffi.new("struct kvm_coalesced_mmio_ring *", {"coalesced_mmio": lib.COALESCED_ENTRIES})
        self.coalesced = coalesced
        if coalesced:
            lib.vmm_vm_coalesce(self.core, self.ring)
        self.memory = ffi.addressof(self.core, "memory")
        self.ports = ffi.addressof(self.core, "ports")
        self.backing: list[Any] = []
        self.ram = self.add_memory(0, ram_size)
        self.failures: list[BaseException] = []
        self.device = FwCfg(self.core, dma=dma, on_failure=self.failures.append)

    def add_memory(self, gpa: int, size: int, *, read_only: bool = False) -> memoryview:
        pin = ffi.new("uint8_t[]", size)
        self.backing.append(pin)
        flags = lib.GUEST_REGION_READ_ONLY if read_only else 0
        assert lib.guest_memory_add(self.memory, gpa, size, pin, flags) == 0
        return memoryview(ffi.buffer(pin))

    def start(self, *, in_python: bool = False) -> Self:
        self.device.publish()
        self.bus = Bus("port", self.ports, IoLock(self.core), self.failures.append)
        attach_fw_cfg(self.device, self.bus, self.core, in_python=in_python)
        return self

    def _access(self, port: int, size: int, count: int, data: Any, *, write: bool) -> None:
        access = ffi.new("struct io_access *")
        access.address, access.size, access.count, access.is_write, access.data = port, size, count, write, data
        with IoLock(self.core):
            lib.io_table_access(self.ports, access)

    def keep(self, address: int, data: bytes, size: int | None = None, pio: int = 1) -> bool:
        """Do what KVM does with a write (Linux, virt/kvm/coalesced_mmio.c); False: the ring is full."""
        entry, after = self.ring.coalesced_mmio[self.ring.last], (self.ring.last + 1) % lib.COALESCED_ENTRIES
        if after == self.ring.first:
            return False
        entry.phys_addr, entry.len, entry.pio = address, len(data) if size is None else size, pio
        entry.data[0 : len(data)] = data
        self.ring.last = after
        return True

    def settled(self) -> Any:
        """The device's registers, once it has been told all that was written."""
        with IoLock(self.core):
            return self.device.native

    def inp(self, port: int, size: int = 1, count: int = 1) -> bytes:
        data = ffi.new("uint8_t[]", size * count)
        self._access(port, size, count, data, write=False)
        return bytes(data)

    def outs(self, port: int, size: int, data: bytes) -> None:
        kept = self.coalesced and port in PORT_FW_CFG_NOTES and port + size - 1 in PORT_FW_CFG_NOTES
        if not kept:
            self._access(port, size, len(data) // size, ffi.new("uint8_t[]", data), write=True)
            return
        for at in range(0, len(data), size):
            element = data[at : at + size]
            if not self.keep(port, element):
                self._access(port, size, 1, ffi.new("uint8_t[]", element), write=True)

    def out(self, port: int, value: int, size: int) -> None:
        self.outs(port, size, value.to_bytes(size, "little"))

    def select(self, key: int) -> None:
        self.out(0x510, key, 2)

    def trigger(self, at: int) -> None:
        """Start the DMA whose descriptor is at ``at``."""
        self.outs(0x514, 4, struct.pack(">I", at >> 32))
        self.outs(0x518, 4, struct.pack(">I", at & 0xFFFFFFFF))

    def dma(self, control: int, length: int, address: int, at: int = DESCRIPTOR) -> int:
        """Run one descriptor from RAM; the control word that it left."""
        self.poke(at, struct.pack(">IIQ", control, length, address))
        self.trigger(at)
        return int.from_bytes(self.peek(at, 4), "big")

    def peek(self, at: int, size: int) -> bytes:
        return bytes(self.ram[at : at + size])

    def poke(self, at: int, data: bytes) -> None:
        self.ram[at : at + len(data)] = data
