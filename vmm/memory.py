"""Guest RAM and ROM: who backs which guest physical address (GPA).

One anonymous mapping holds all RAM. It appears to the guest below the PCI
hole from GPA 0, and from 4 GiB on (1 TiB, if AMD's hole would be in the way) with what did not fit. The legacy area
0xa0000-0xfffff is left out here: the chipset decides there between ROM and
RAM (`map_ram`, `map_rom`).

Each region is at once a KVM memory slot and a row of the table that C code
checks its copies against, so that devices and the guest see the same map.
"""

from __future__ import annotations

import mmap
import os
import re
from itertools import pairwise

from vmm import layout
from vmm._native import ffi, lib
from vmm.config.parts import RamPlaces
from vmm.options import check_type
from vmm.pin import Pinned
from vmm.ram import HUGE_PAGE_SIZE, KeptRam, fresh_ram, shared_ram
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

    from vmm.config.machine import MachineConfig
    from vmm.kvm import Vm

_SMM_SPACE = 1 << 16
"""In a slot's number: the address space of vCPUs in system management mode (arch/x86/include/asm/kvm_host.h)."""


class Region(NamedTuple):
    """One range of guest physical addresses with memory behind it; sizes in bytes."""

    gpa: int
    size: int
    kind: str
    read_only: bool
    slot: int


class _Parked(NamedTuple):
    """A KVM slot whose ROM is not in the table for now."""

    region: Region
    rom: Pinned


class GuestMemory:
    """The memory of one machine.

    Args:
        vm: the KVM virtual machine that gets the memory slots.
        core: the C core's `struct vmm_vm` of the same machine.
        size: bytes of RAM, a multiple of 4 KiB.
        low_limit: the GPA at which the PCI hole begins; RAM beyond it moves above 4 GiB.
        ram: what the RAM is, instead of fresh memory; closed with this object.
        cuts: addresses in low RAM, rising, at which a region ends and another begins: what can be unmapped by itself.
        kvm_smm: vCPUs are KVM's in system management mode, too, in which they see a second set of slots.
        shared: whether other processes are to map it.
        high_base: where RAM that does not fit below the PCI hole begins.
        room: bytes of addresses behind RAM that are kept for more of it.

    Attributes:
        size: as given.
        low_size: bytes of RAM from GPA 0.
        high_size: bytes of RAM from ``high_base``.
        filled: offsets and sizes in RAM that held something before this machine did.
        shared: the memfd that the RAM is, and for each part GPA, bytes and offset in it; None: it is no such memory.

    Raises:
        ConfigError: the host cannot give that much address space.
    """

    def __init__(
        self,
        vm: Vm,
        core: Any,
        size: int,
        low_limit: int,
        ram: KeptRam | None = None,
        *,
        cuts: tuple[int, ...] = (),
        kvm_smm: bool = False,
        shared: bool = False,
        high_base: int = layout.HIGH_RAM_BASE,
        room: int = 0,
    ) -> None:
        self._vm = vm
        self._core = core  # owns the table
        self._table = ffi.addressof(core, "memory")
        self.size = size
        self.low_size = min(size, low_limit)
        self.high_size = size - self.low_size
        self.high_base = high_base
        self._room = room
        fd = -1
        if ram is not None:
            self._mapping = ram.mapping
        elif shared:
            fd, self._mapping = shared_ram(size)
        else:
            self._mapping = fresh_ram(size)
        self.filled = [] if ram is None else ram.filled
        self._ram_pin = ffi.from_buffer(self._mapping)
        address = int(ffi.cast("uintptr_t", self._ram_pin))
        start = -address % HUGE_PAGE_SIZE if ram is None else 0
        self._ram = memoryview(self._mapping)[start : start + size]
        self._ram_address = address + start
        self.shared: tuple[int, tuple[tuple[int, int, int], ...]] | None = None
        if fd >= 0:
            low, high = (0, self.low_size, start), (high_base, self.high_size, start + self.low_size)
            self.shared = fd, (low, high) if self.high_size else (low,)
        self._regions: dict[int, Region] = {}
        self._mapped = 0
        self._roms: dict[int, Pinned] = {}
        self._kvm_smm = kvm_smm
        self._smm_slots: dict[int, int] = {}
        self._free_slots: list[int] = []
        self._next_slot = 0
        self._parked: dict[int, _Parked] = {}
        self._parks_roms = False
        first = [cut for cut in cuts if cut < layout.LEGACY_VIDEO.start]
        below, above = (0, *first, layout.LEGACY_VIDEO.start), (layout.LEGACY_END, *cuts[len(first) :], self.low_size)
        for start, end in (*pairwise(below), *pairwise(above)):
            self.map_ram(start, end - start)
        if self.high_size:
            self._map(high_base, self.high_size, self._ram_address + self.low_size, "ram", read_only=False)

    def __repr__(self) -> str:
        ram = f"{self.low_size:#x} bytes of RAM from 0"
        if self.high_size:
            ram += f", {self.high_size:#x} from {self.high_base:#x}"
        return f"<GuestMemory: {ram}, {len(self._regions)} regions>"

    def map_ram(self, gpa: int, size: int, *, read_only: bool = False, ram: int | None = None) -> None:
        """Show the RAM that belongs to ``gpa``, or to ``ram`` (below the PCI hole), there.

        Raises:
            ValueError: the range overlaps a mapped one, or is not all low RAM.
        """
        self._map(gpa, size, self._low_ram(gpa if ram is None else ram, size), "ram", read_only=read_only)

    def map_smm(self, gpa: int, size: int, ram: int) -> None:
        """Show the low RAM that belongs to ``ram`` at ``gpa``, to vCPUs in system management mode and nobody else.

        Raises:
            ValueError: the range overlaps another of these, or is not all low RAM.
        """
        hva = self._low_ram(ram, size)
        error = lib.guest_memory_add_smm(self._table, gpa, size, ffi.cast("uint8_t *", hva))
        if error:
            raise ValueError(f"cannot map {gpa:#x}+{size:#x} for system management mode: error {-error}")
        if self._kvm_smm:
            slot = self._smm_slots[gpa] = self._new_slot()
            self._vm.set_user_memory_region(slot | _SMM_SPACE, gpa, size, hva)

    def unmap_smm(self, gpa: int) -> None:
        """Take away what `map_smm` shows from ``gpa`` on.

        Raises:
            KeyError: it shows nothing from there.
        """
        if lib.guest_memory_remove_smm(self._table, gpa):
            raise KeyError(gpa)
        if self._kvm_smm:
            slot = self._smm_slots.pop(gpa)
            self._vm.set_user_memory_region(slot | _SMM_SPACE, gpa, 0, 0)
            self._free_slots.append(slot)

    def _low_ram(self, ram: int, size: int) -> int:
        if ram + size > self.low_size:
            raise ValueError(f"{ram:#x}+{size:#x} is not below the end of low RAM at {self.low_size:#x}")
        return self._ram_address + ram

    def map_rom(self, gpa: int, contents: Buffer) -> None:
        """Show ``contents`` (whole pages) read-only at ``gpa``; the buffer is used in place, not copied.

        Guest stores there become MMIO accesses.

        Raises:
            ValueError: the range overlaps a mapped one.
        """
        rom = Pinned.of(contents)
        self._map(gpa, rom.size, rom.address, "rom", read_only=True)
        self._roms[gpa] = rom

    def unmap(self, gpa: int) -> None:
        """Take away the region that starts at ``gpa``; accesses there become MMIO.

        Raises:
            KeyError: no region starts there.
        """
        region = self._regions.pop(gpa)
        self._mapped -= region.size
        if self._parks_roms and region.kind == "rom":
            self._parked[gpa] = _Parked(region, self._roms.pop(gpa))
            lib.guest_memory_remove(self._table, gpa)
            return
        self._set_slot(region.slot, region.gpa, 0, 0)
        lib.guest_memory_remove(self._table, gpa)
        self._free_slots.append(region.slot)
        self._roms.pop(gpa, None)

    def park_roms(self, park: bool) -> None:
        """Leave a ROM's KVM slot in place when the ROM is unmapped, until something else wants its addresses.

        For a software CPU, which uses only the C table: a flash chip is unmapped and mapped again for every byte
        that firmware programs, and KVM takes about a millisecond to change its slots.
        """
        self._parks_roms = park
        if not park:
            self._drop_parked(0, 1 << 64)

    def _drop_parked(self, gpa: int, size: int) -> None:
        for at, parked in list(self._parked.items()):
            if at < gpa + size and gpa < at + parked.region.size:
                self._set_slot(parked.region.slot, at, 0, 0)
                self._free_slots.append(parked.region.slot)
                del self._parked[at]

    def _slot_for(self, gpa: int, size: int, hva: int, *, read_only: bool) -> int:
        """The KVM slot that shows ``size`` bytes from ``hva`` at ``gpa``: the one that was left there, or a new one."""
        parked = self._parked.get(gpa)
        if parked is not None and read_only and (parked.rom.size, parked.rom.address) == (size, hva):
            del self._parked[gpa]
            return parked.region.slot
        self._drop_parked(gpa, size)
        slot = self._new_slot()
        self._set_slot(slot, gpa, size, hva, read_only=read_only)
        return slot

    def _new_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        return slot

    def _set_slot(self, slot: int, gpa: int, size: int, hva: int, *, read_only: bool = False) -> None:
        """In both of KVM's address spaces, if the second one counts (api.rst, KVM_CAP_MULTI_ADDRESS_SPACE)."""
        for space in (0, _SMM_SPACE) if self._kvm_smm else (0,):
            self._vm.set_user_memory_region(slot | space, gpa, size, hva, read_only=read_only)

    def read(self, gpa: int, size: int) -> bytes:
        """``size`` bytes from ``gpa``.

        Raises:
            ValueError: not all of the range is backed by memory, or the machine is closed.
        """
        self._check(gpa, size)
        data = bytearray(size)
        done = lib.guest_memory_read(self._table, gpa, ffi.from_buffer(data), size)
        if done != size:
            raise ValueError(f"no memory at {gpa + done:#x}")
        return bytes(data)

    def smm_ranges(self) -> list[tuple[int, int]]:
        """What only system management mode sees, as (GPA, bytes)."""
        table = self._table
        return [(region.gpa, region.size) for region in table.smm_regions[0 : table.smm_count]]

    def read_in_smm(self, gpa: int, size: int) -> bytes:
        """As `read`, but as vCPUs in system management mode see it; in one piece of what `map_smm` shows, or in none.

        Raises:
            ValueError: see `read`.
        """
        self._check(gpa, size)
        for region in self._table.smm_regions[0 : self._table.smm_count]:
            if region.gpa <= gpa and gpa + size <= region.gpa + region.size:
                return bytes(ffi.buffer(region.hva + (gpa - region.gpa), size))
        return self.read(gpa, size)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``gpa``, as a device would.

        Raises:
            ValueError: not all of the range is backed by writable memory, or the machine is closed.
        """
        check_type(data, "data", bytes, bytearray, memoryview)
        data = bytes(data)
        self._check(gpa, len(data))
        done = lib.guest_memory_write(self._table, gpa, data, len(data))
        if done != len(data):
            raise ValueError(f"no writable memory at {gpa + done:#x}")

    def touched(self, gpa: int, size: int) -> list[tuple[int, int]]:
        """Where in a range of whole pages something is, as (GPA, bytes): what nobody has used yet is left out.

        A look at that would take memory from the host for it.
        """
        pages = bytearray(size // mmap.PAGESIZE)
        if not lib.guest_memory_touched(self._table, gpa, size, ffi.from_buffer(pages)):
            return [(gpa, size)]
        there = pages.translate(bytes(value & 1 for value in range(256)))
        return [(gpa + run.start() * mmap.PAGESIZE, len(run[0]) * mmap.PAGESIZE) for run in re.finditer(b"\1+", there)]

    def store_behind(self, gpa: int, data: bytes) -> None:
        """Store into the low RAM that belongs to ``gpa``, whatever is mapped there now.

        Raises:
            ValueError: the range is not all low RAM.
        """
        if gpa + len(data) > self.low_size:
            raise ValueError(f"{gpa:#x}+{len(data):#x} is not below the end of low RAM at {self.low_size:#x}")
        self._ram[gpa : gpa + len(data)] = data

    @property
    def ram(self) -> memoryview:
        """All RAM, that from 4 GiB on behind what is below; no more once it is closed."""
        return self._ram

    @property
    def places(self) -> RamPlaces:
        """Where RAM is, and may be."""
        return RamPlaces(self.low_size, self.high_size, self.high_base, self._room)

    def regions(self) -> list[Region]:
        """What is mapped now, by rising address."""
        return [self._regions[gpa] for gpa in sorted(self._regions)]

    @property
    def slots_used(self) -> int:
        """KVM memory slots in use."""
        return len(self._regions) + len(self._parked)

    def close(self) -> None:
        """Give the RAM back; the KVM virtual machine must be closed already."""
        for gpa in self._regions:
            lib.guest_memory_remove(self._table, gpa)
        self._roms.clear()
        self._parked.clear()
        self._ram.release()
        ffi.release(self._ram_pin)
        self._mapping.close()
        if self.shared is not None:
            os.close(self.shared[0])
            self.shared = None

    def _check(self, gpa: int, size: int) -> None:
        """Refuse what C's types do not hold; what is mapped, C knows.

        Raises:
            ValueError: the machine is closed, or has not that much memory.
            TypeError: no whole number.
        """
        if self._mapping.closed:
            raise ValueError("the machine is closed, and its memory gone")
        check_type(gpa, "gpa", int)
        check_type(size, "size", int)
        # Not their sum: a device may change the regions on another thread meanwhile.
        if not 0 <= gpa < 1 << 64 or not 0 <= size <= self._mapped:
            raise ValueError(f"no memory of {size} bytes at {gpa:#x}")

    def _map(self, gpa: int, size: int, hva: int, kind: str, *, read_only: bool) -> None:
        if any(region.gpa < gpa + size and gpa < region.gpa + region.size for region in self._regions.values()):
            raise ValueError(f"{gpa:#x}+{size:#x} overlaps memory that is mapped already")
        # KVM first: a thread that C tells of the change may run the guest at once.
        slot = self._slot_for(gpa, size, hva, read_only=read_only)
        flags = lib.GUEST_REGION_READ_ONLY if read_only else 0
        error = lib.guest_memory_add(self._table, gpa, size, ffi.cast("uint8_t *", hva), flags)
        if error:
            raise ValueError(f"cannot map {gpa:#x}+{size:#x}: error {-error}")
        self._regions[gpa] = Region(gpa, size, kind, read_only, slot)
        self._mapped += size


def create_memory(
    vm: Vm, core: Any, config: MachineConfig, ram: KeptRam | None, *, kvm_smm: bool, high_base: int
) -> GuestMemory:
    """The memory that a machine is described to have.

    Args:
        vm: as for `GuestMemory`, and so are core and ram.
        core: see there.
        config: of the machine.
        ram: see there.
        kvm_smm: whether system management mode, if the machine has it, is KVM's.
        high_base: see there.

    Raises:
        ConfigError: the host cannot give that much address space.
    """
    cuts: tuple[int, ...] = ()
    if config.has_smm:
        from vmm.devices.smram import boundaries

        cuts = boundaries(config.low_memory, plugging=config.can_plug_cpus)
    return GuestMemory(
        vm,
        core,
        config.memory,
        config.low_memory,
        ram,
        cuts=cuts,
        kvm_smm=config.has_smm and kvm_smm,
        shared=config.shares_memory,
        high_base=high_base,
        room=config.memory_room,
    )
