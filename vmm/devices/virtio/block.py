"""A disk: virtio-blk in front of a raw image, whose requests threads in C serve (`native/virtio/blk.c`).

Where time is virtual, threads would make runs differ: requests are served when a deadline comes, one after the other.
"""

import os
from typing import Any

from vmm._native import ffi, lib
from vmm.devices.virtio.device import VirtioDevice
from vmm.devices.virtio.transport import Backplane, VirtioFunction
from vmm.disks.image import SECTOR, DiskImage
from vmm.errors import HostError
from vmm.tables.boot_order import HOST_BRIDGE_PATH

_BLOCK_DEVICE = 2
"""Virtio 1.2, chapter 5."""

REQUEST_NS = 100_000
"""Of virtual time, from when the guest says that there are requests to when they are served."""

_MASS_STORAGE = 0x010000
"""PCI Code and ID Assignment: a SCSI storage controller, which QEMU's virtio-blk says it is."""


class VirtioBlk(VirtioDevice):
    """A disk.

    Args:
        image: what is on it; stays open as long as the device.
        backplane: what it is plugged into.
        slot: PCI device number.

    Attributes:
        drive: what it is made of.
        name: of its ranges on the bus.
        fd: the image.
        size: bytes of the image.
        guest_files: descriptors that whoever serves the guest uses: what wakes its threads; without any, the image.

    Raises:
        HostError: no memory, descriptors or threads for it.
    """

    def __init__(self, image: DiskImage, backplane: Backplane, slot: int) -> None:
        self.drive = drive = image.drive
        self.fd = image.fd
        self.size = image.size
        self._image = image
        self._backplane = backplane
        memory, mutex = ffi.addressof(backplane.core, "memory"), lib.vmm_io_mutex(backplane.core)
        blk = lib.virtio_blk_new(memory, mutex, backplane.pirqs.core)
        if not blk:
            raise HostError(f"{drive.option}: no memory, or no descriptor for it (ulimit -n)")
        self._blk = blk = ffi.gc(blk, lib.virtio_blk_free)
        blk.disks_read = backplane.disks_read or ffi.NULL
        event_fd = int(blk.event_fd)
        blk.read_only = drive.read_only
        blk.write_back = drive.cache.write_back
        core = blk.image
        core.fd, core.direct_fd, core.direct_alignment = image.fd, image.direct_fd, image.direct_alignment
        core.overlay_fd, core.sectors = image.overlay_fd, image.size // SECTOR
        core.unmap, core.never_sync = drive.unmap, drive.cache == "unsafe"
        if image.overlaid is not None:
            self._bitmap_pin = ffi.from_buffer("uint8_t[]", image.overlaid)
            core.overlaid = self._bitmap_pin
        self._files = [fd for fd in (core.fd, core.direct_fd, core.overlay_fd) if fd >= 0]
        self.guest_files = [event_fd]
        if (timers := backplane.timers) is not None:
            self._clock = timers.clock
            self._timer = timers.timer(self._serve)
            self._handle = ffi.new_handle(self)
            blk.waiting, blk.waiting_opaque = lib.vmm_python_disk_waits, self._handle
            blk.stop = ffi.addressof(backplane.core, "stop")
            self.guest_files = self._files
        serial = drive.serial.encode("ascii")
        ffi.memmove(blk.serial, serial, len(serial))
        registers = ffi.addressof(blk, "pci")
        self.name = f"virtio-blk {slot}"
        function = VirtioFunction(_BLOCK_DEVICE, _MASS_STORAGE, registers, backplane, slot, self.name, [event_fd])
        super().__init__(function, registers, backplane.lock)
        error = lib.virtio_blk_start(blk)
        if error:
            self.close()
            raise HostError(f"{drive.option}: no thread for it: {os.strerror(error).lower()} (ulimit -u)")

    def restrict(self, vm: int) -> None:
        """Let its threads use the image and the machine's interrupts alone, before they serve the next request.

        Args:
            vm: descriptor of the virtual machine.
        """
        if self._backplane.timers is not None:
            return
        files = [*self.guest_files, *self._files]
        self._sandbox = ffi.new("struct sandbox_disk *", {"vm": vm, "count": len(files), "files": files})
        lib.virtio_blk_restrict(self._blk, ffi.addressof(lib, "sandbox_filter_disk"), self._sandbox)

    def note_requests(self) -> None:
        """The guest says that it has made some; without threads, and with io_lock held."""
        if not self._timer.armed:
            self._timer.arm(self._clock() + REQUEST_NS)

    def _serve(self) -> None:
        if not lib.virtio_blk_serve_waiting(self._blk):
            # A stop: the rest once the machine runs again. Later than now, for what is due now is called back first.
            self._timer.arm(self._clock() + 1)

    @property
    def path(self) -> str:
        """The disk's OpenFirmware path, as QEMU writes it into ``bootorder`` (hw/core/qdev-fw.c, hw/pci/pci.c)."""
        return f"{HOST_BRIDGE_PATH}/scsi@{self.slot:x}/disk@0,0"

    def settle(self) -> None:
        """Wait until every request is served that the guest has made; no vCPU runs, and io_lock is not held."""
        lib.virtio_blk_settle(self._blk)

    @property
    def is_written(self) -> bool:
        """Whether the guest may have changed what somebody else needs: the image, or its private overlay.

        The disk of a folder is part of the machine.
        """
        if self.drive.read_only or self.drive.folder:
            return False
        # Not by looking at the bitmap, which of a large image has gigabytes.
        counters = self._blk.counters
        return self._image.overlaid is None or counters.writes + counters.discards > 0

    def identity(self) -> list[int]:
        """The image's size in bytes, and when it was changed last, in ns since 1970; 0 for that of a folder."""
        return [self.size, 0 if self.drive.folder else os.fstat(self.fd).st_mtime_ns]

    def state(self) -> dict[str, Any]:
        """As `VirtioDevice.state`, and the requests that are being served; what is on the disk is not part of it."""
        heads = ffi.new("uint16_t[]", lib.VIRTIO_BLK_THREADS)
        count = lib.virtio_blk_begun(self._blk, heads)
        return super().state() | {"begun": [heads[i] for i in range(count)]}

    def restore(self, state: dict[str, Any]) -> None:
        """As `VirtioDevice.restore`; requests that had been begun are served from their beginning."""
        heads = state["begun"]
        if len(heads) > lib.VIRTIO_BLK_THREADS:
            raise ValueError(f"{len(heads)} requests that were being served")
        self._blk.again_count = len(heads)
        for i, head in enumerate(heads):
            self._blk.again[i] = head
        super().restore(state)

    def counters(self) -> dict[str, int]:
        """Requests served so far, by kind, bytes moved, how many the image failed, and the last of these's errno."""
        with self._backplane.lock:
            counters = self._blk.counters
            return {name: getattr(counters, name) for name, _ in ffi.typeof(counters).fields}

    @property
    def first_read(self) -> int:
        """Which of the disks that the guest read from this was, from 1, by the first read of each; 0: it is none."""
        with self._backplane.lock:
            return int(self._blk.first_read)

    def close(self) -> None:
        """End the threads; no vCPU runs, and io_lock is not held. May be called twice."""
        lib.virtio_blk_stop(self._blk)


@ffi.def_extern()  # type: ignore[untyped-decorator]
def vmm_python_disk_waits(opaque: Any) -> None:
    """C's way to `VirtioBlk.note_requests`."""
    disk: VirtioBlk = ffi.from_handle(opaque)
    disk.note_requests()
