"""fw_cfg: what the items of QEMU's firmware configuration device contain, and what their use calls back.

The device itself, ports and DMA, is C (`native/fw_cfg.c`). This module owns the
contents: it registers items, gives files their keys, builds the directory and
hands a sealed table of pointers to C. C calls back only for items that asked
for it, with the machine's io_lock held.

Not here: what a PC's items contain (`vmm.devices.fw_cfg_items`), and the
reference model that C is tested against (`tests/support/fw_cfg_model.py`).

Source: docs/specs/fw_cfg.rst in QEMU's tree.
"""

from __future__ import annotations

import struct
from functools import partial

from vmm._native import ffi, lib
from vmm.bus import IoLock
from vmm.devices.fw_cfg_format import (
    ARCH_LOCAL,
    DIRECTORY_ENTRY,
    FILE_FIRST,
    INDEX_MASK,
    KEY_NAMES,
    MAX_FILES,
    Buffer,
    Key,
    check_name,
)
from vmm.devices.fw_cfg_item import (
    COUNTERS,
    BuildFiles,
    Item,
    ItemStatistics,
    LateFiles,
    OnSelect,
    OnWrite,
    directory,
    new_item,
    table,
)
from vmm.errors import ConfigError
from vmm.layout import PORT_FW_CFG
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from vmm.bus import Bus, Device
    from vmm.devices.clock import GuestClock


class FwCfg:
    """The device: register items, `publish` them, `attach` the ports.

    Args:
        core: the C core's ``struct vmm_vm`` of the machine.
        dma: offer the DMA interface (bit 1 of the id, ports 0x514-0x51b).
        on_failure: called with the exception when a callback of an item raises; should stop the machine.
    """

    def __init__(
        self, core: Any, *, dma: bool = True, on_failure: Callable[[BaseException], None] | None = None
    ) -> None:
        self._core = core
        self._on_failure = on_failure
        self._native = ffi.gc(
            lib.fw_cfg_new(ffi.addressof(core, "memory"), ffi.addressof(core, "stop"), dma), lib.fw_cfg_free
        )
        if self._native == ffi.NULL:
            raise MemoryError
        self._handle = ffi.new_handle(self)
        self._clock: GuestClock | None = None
        lib.fw_cfg_listen(self._native, lib.vmm_python_fw_cfg_event, self._handle)
        self._items: dict[int, Item] = {}
        self._files: dict[str, Item] = {}
        self._tables: tuple[Any, Any] | None = None
        self._registers: Device | None = None
        self._late: list[LateFiles] = []
        self._at_reset: list[Callable[[], object]] = []
        self.failure: BaseException | None = None
        self.add_item(Key.SIGNATURE, b"QEMU")
        self.add_item(Key.ID, struct.pack("<I", 3 if dma else 1))

    # -- registration -----------------------------------------------------------------------------------------------

    def add_item(
        self,
        key: int,
        data: Buffer,
        *,
        writable: bool = False,
        on_select: OnSelect | None = None,
        on_write: OnWrite | None = None,
    ) -> None:
        """Publish ``data`` under a fixed key. The buffer is used in place unless the item is writable.

        Raises:
            ConfigError: the key is taken or belongs to files.
        """
        index = key & INDEX_MASK
        if key & ~(ARCH_LOCAL | INDEX_MASK) or (index >= FILE_FIRST and not key & ARCH_LOCAL):
            raise ConfigError(f"fw_cfg key {key:#x}: fixed keys are below 0x20, or 0x8000 and above")
        if key in self._items or key == Key.FILE_DIR:
            raise ConfigError(f"fw_cfg key {key:#x} is taken")
        self._refuse_if_published()
        name = KEY_NAMES.get(key, f"key {key:#x}")
        self._items[key] = new_item(name, key, data, writable, on_select, on_write)

    def add_file(
        self,
        name: str,
        data: Buffer,
        *,
        writable: bool = False,
        on_select: OnSelect | None = None,
        on_write: OnWrite | None = None,
    ) -> None:
        """Publish ``data`` as a named file. The buffer is used in place unless the file is writable.

        Raises:
            ConfigError: the name is taken, overlong or not ASCII, or all keys are taken.
        """
        check_name(name)
        if name in self._files:
            raise ConfigError(f"fw_cfg file {name}: the name is taken")
        if len(self._files) == MAX_FILES:
            raise ConfigError(f"fw_cfg file {name}: no more than {MAX_FILES} files have keys")
        self._refuse_if_published()
        self._files[name] = new_item(name, -1, data, writable, on_select, on_write)

    def add_late_files(
        self,
        names: Iterable[str],
        build: BuildFiles,
        *,
        first: Mapping[str, Buffer] | None = None,
        follow_guest: bool = False,
    ) -> None:
        """Publish files whose contents are made when the guest first looks into the directory, or selects one of them.

        A small guest that asks for none of this is over before the contents would be there. Until then their size is 0.

        Args:
            names: of the files.
            build: gives the contents of all of them; called with io_lock held. It must not fail.
            first: their contents now, where they are known already.
            follow_guest: the contents depend on what the guest does to the machine: build them again when it first
                selects one of them after power-on or reset, as QEMU does with ACPI's. The sizes must stay.

        Raises:
            ConfigError: as `add_file`.
        """
        late = LateFiles(names, build, built=first is not None, follow_guest=follow_guest)
        for name in late.names:
            self.add_file(name, b"" if first is None else first[name], on_select=partial(self._selected, late))
        self._late.append(late)

    def add_user_file(self, name: str, data: Buffer) -> None:
        """Publish a file that the user asked for; warns about a name outside ``opt/``, as QEMU does.

        Raises:
            ConfigError: as `add_file`.
        """
        if not name.startswith("opt/"):
            import logging  # takes longer to load than a small guest to run

            log = logging.getLogger(__name__)
            log.warning("fw_cfg file %s: names for users begin with opt/ (docs/specs/fw_cfg.rst)", name)
        self.add_file(name, data)

    def at_reset(self, callback: Callable[[], object]) -> None:
        """Have something done at the end of each reset of the machine but a wake-up, with io_lock held."""
        self._at_reset.append(callback)

    def publish(self, first: Iterable[str] = ()) -> None:
        """Seal the table: give files their keys, in the order of their names, and hand all items to C.

        Call it once, before vCPUs run.

        Args:
            first: files that get the first keys, in this order: a guest may know them already.
        """
        self._refuse_if_published()
        rank = {name: at for at, name in enumerate(first)}
        for key, name in enumerate(
            sorted(self._files, key=lambda name: (rank.get(name, len(rank)), name.encode())), FILE_FIRST
        ):
            self._items[key] = self._files[name] = self._files[name]._replace(key=key)
        on_look = self.build_late_files if self._late else None
        self._items[Key.FILE_DIR] = new_item(
            "file_dir", Key.FILE_DIR, directory(self._files.values()), True, on_look, None
        )
        generic = table({key: item for key, item in self._items.items() if not key & ARCH_LOCAL})
        arch = table({key: item for key, item in self._items.items() if key & ARCH_LOCAL})
        self._tables = generic, arch
        lib.fw_cfg_publish(self._native, generic, len(generic), arch, len(arch))

    def attach(self, ports: Bus, registers: Device | None = None) -> None:
        """Answer `vmm.layout.PORT_FW_CFG`.

        Args:
            ports: the machine's port bus.
            registers: answers them instead of C, and is reset with the items; there is no access log then.

        Raises:
            ConfigError: another device has some of them, such as fwctl.
        """
        first, last = PORT_FW_CFG.start, PORT_FW_CFG.stop - 1
        if registers is not None:
            self.build_late_files()
            self._registers = registers
            ports.add(first, last, registers, "fw_cfg")
            return
        ports.add_native(first, last, ffi.addressof(lib, "fw_cfg_access"), self._native, "fw_cfg")

    # -- while the machine lives ------------------------------------------------------------------------------------

    def replace_file(self, name: str, data: Buffer) -> None:
        """Change what a published file contains, such as ``bootorder`` after a reset; its directory entry follows.

        Safe while vCPUs run. A writable file also returns to these contents at reset.

        Raises:
            KeyError: there is no such file.
        """
        old = self._files[name]
        new = new_item(name, old.key, data, old.writable, old.on_select, old.on_write)
        with IoLock(self._core):
            self._files[name] = self._items[new.key] = new
            lib.fw_cfg_replace(self._native, new.key, new.pointer, new.size)
            listed = self._items[Key.FILE_DIR]
            at = 4 + (new.key - FILE_FIRST) * DIRECTORY_ENTRY.size
            ffi.buffer(listed.contents)[at : at + 4] = struct.pack(">I", new.size)

    def build_late_files(self) -> None:
        """Build those of `add_late_files` whose contents nobody has needed yet; the guest's first look does it, too."""
        with IoLock(self._core):
            for late in self._late:
                if not late.built:
                    self._build(late)

    def contents(self, name: str) -> bytes:
        """What a file contains now, with what the guest wrote into it.

        Raises:
            KeyError: there is no such file.
        """
        for late in self._late:
            if name in late.names and late.stale:
                self._build(late)
        item = self._files[name]
        return bytes(ffi.buffer(item.contents, item.size))

    def is_writable(self, name: str) -> bool:
        """Whether the guest may write a file.

        Raises:
            KeyError: there is no such file.
        """
        return self._files[name].writable

    def reset(self, *, wakeup: bool = False) -> None:
        """Reset of the machine, from S3 for ``wakeup``: key 0 is selected, writable items are as they were at first."""
        with IoLock(self._core):
            lib.fw_cfg_reset(self._native)
            if self._registers is not None:
                self._registers.reset()
            for late in self._late:
                late.selected = False
            for item in self._items.values():
                if item.initial is not None and item.key != Key.FILE_DIR:
                    ffi.buffer(item.contents)[:] = item.initial
            for callback in self._at_reset if not wakeup else ():
                callback()

    def state(self) -> dict[str, Any]:
        """Registers, the order of the files, what the guest wrote, files that were made late, and all counters."""
        with IoLock(self._core):
            native = self._native
            registers = {"key": native.key, "offset": native.offset, "dma_address": native.dma_address}
            late = {name for late in self._late for name in late.names if late.built}
            return {
                "registers": self._registers.state() if self._registers is not None else registers,
                "files": sorted(self._files, key=lambda name: self._files[name].key),
                "late": [[late.built, late.selected] for late in self._late],
                "contents": {
                    name: bytes(ffi.buffer(item.contents, item.size))
                    for name, item in self._files.items()
                    if item.writable or name in late
                },
                "counters": {
                    item.name: [getattr(self._row(key), name) for name in COUNTERS] for key, item in self._items.items()
                },
            }

    def restore(self, state: dict[str, Any]) -> None:
        """Be what gave ``state``; the items, published by then with its order of files, may have other contents.

        Raises:
            ConfigError: an item is missing that the guest knows.
        """
        missing = sorted(set(state["counters"]) - {item.name for item in self._items.values()})
        if missing:
            raise ConfigError(f"fw_cfg lacks what the snapshot's machine had: {', '.join(missing)}; give it again")
        with IoLock(self._core):
            for late, (built, selected) in zip(self._late, state["late"], strict=True):
                late.built, late.selected = built, selected
            for name, contents in state["contents"].items():
                item = self._files[name]
                if not item.writable:
                    self.replace_file(name, contents)
                else:
                    ffi.buffer(item.contents)[:] = contents
            for key, item in self._items.items():
                for name, count in zip(COUNTERS, state["counters"].get(item.name, ()), strict=False):
                    setattr(self._row(key), name, count)
            if self._registers is not None:
                self._registers.restore(state["registers"])
            else:
                lib.fw_cfg_restore(
                    self._native, *(state["registers"][name] for name in ("key", "offset", "dma_address"))
                )

    def __repr__(self) -> str:
        return f"<FwCfg: {len(self._items)} items; items() has them, and what was read of each>"

    def items(self) -> list[ItemStatistics]:
        """Every item by key, files among them by name, with what the guest did so far."""
        return [item.statistics(self._row(key)) for key, item in sorted(self._items.items())]

    def go_by(self, clock: GuestClock) -> None:
        """Note from now on after how many instructions, as the clock counts them, an item is first selected."""
        self._clock = clock
        self._native.clock = clock.core

    @property
    def instructions(self) -> int:
        """What the clock of `go_by` has counted; 0 without one."""
        return 0 if self._clock is None else int(self._clock.core.instructions)

    def first_selected(self) -> list[tuple[str, int, int | None]]:
        """When the guest first selected each item: name, CLOCK_MONOTONIC in ns, and instructions, if they are counted.

        Those are missing that it never did, or before the machine was restored from a snapshot.
        """
        rows = ((item.name, self._row(key)) for key, item in self._items.items())
        counted = self._clock is not None
        return [
            (name, row.first_ns, int(row.first_instructions) if counted else None) for name, row in rows if row.first_ns
        ]

    def key_of(self, name: str) -> int:
        """The key that a published file has.

        Raises:
            KeyError: there is no such file.
        """
        return self._files[name].key

    def row(self, key: int) -> Any:
        """The published ``struct fw_cfg_item`` that a guest selects with ``key``; None for a key beyond the table."""
        if self._tables is None:
            raise RuntimeError("the items are not published yet")
        rows = self._tables[bool(key & ARCH_LOCAL)]
        index = key & INDEX_MASK
        return rows[index] if index < len(rows) else None

    def notify(self, event: int, key: int, offset: int, length: int) -> None:
        """Tell an item's owner what the guest did to it: FW_CFG_EVENT_SELECT or FW_CFG_EVENT_WRITE."""
        self._event(event, key, offset, length)

    def name_of(self, key: int) -> str:
        """An item's name for people; a key that names nothing is shown in hexadecimal."""
        item = self._items.get(key)
        return item.name if item is not None else f"key {key:#x}"

    @property
    def native(self) -> Any:
        """The ``struct fw_cfg`` behind it."""
        return self._native

    @property
    def probes(self) -> int:
        """How often the guest read the signature to its end."""
        return int(self._row(Key.SIGNATURE).ends)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _refuse_if_published(self) -> None:
        if self._tables is not None:
            raise RuntimeError("the items are published already")

    def _selected(self, late: LateFiles) -> None:
        if late.stale:
            self._build(late)
        late.selected = True

    def _build(self, late: LateFiles) -> None:
        with IoLock(self._core):
            late.built = True
            for name, data in late.build().items():
                if name in late.names:
                    self.replace_file(name, data)

    def _row(self, key: int) -> Any:
        if self._tables is None:
            raise RuntimeError("the items are not published yet")
        return self._tables[key >= ARCH_LOCAL][key & INDEX_MASK]

    def _event(self, event: int, key: int, offset: int, length: int) -> None:
        try:
            item = self._items[key]
            if event == lib.FW_CFG_EVENT_SELECT and item.on_select is not None:
                item.on_select()
            elif event == lib.FW_CFG_EVENT_WRITE and item.on_write is not None:
                item.on_write(offset, bytes(ffi.buffer(item.contents)[offset : offset + length]))
        except BaseException as error:  # noqa: BLE001 - an item's callback must not unwind through C
            error.add_note(f"in a callback of fw_cfg item {self.name_of(key)}")
            if self.failure is None:
                self.failure = error
                if self._on_failure is not None:
                    self._on_failure(error)


@ffi.def_extern()  # type: ignore[untyped-decorator]
def vmm_python_fw_cfg_event(opaque: Any, event: int, key: int, offset: int, length: int) -> None:
    """C's way to the `FwCfg` whose item asked to hear of this."""
    device: FwCfg = ffi.from_handle(opaque)
    device._event(event, key, offset, length)  # noqa: SLF001 - the other half of one class
