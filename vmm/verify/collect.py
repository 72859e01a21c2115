"""Boots a machine with a report guest in it, and brings back what was offered and what the guest found."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.devices.fw_cfg_format import Key
from vmm.errors import ConfigError
from vmm.firmware import guests
from vmm.firmware.images import FirmwareKind
from vmm.machine import Machine
from vmm.verify import guest_report, linux_report, taken
from vmm.verify.facts import facts_of
from vmm.verify.guest_report import ROM_FILE, GuestReport, ReportError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.config.machine import MachineConfig
    from vmm.config.outputs import Outputs
    from vmm.config.parts import RamPlaces
    from vmm.devices.fw_cfg import FwCfg
    from vmm.devices.fw_cfg_item import ItemStatistics
    from vmm.devices.vmcoreinfo import VmCoreInfo
    from vmm.run.outcome import Outcome
    from vmm.verify.facts import Facts
    from vmm.verify.taken import Attempt

    Alter = Callable[[dict[str, bytes]], dict[str, bytes]]

DEADLINE = 120.0
"""Seconds; a boot takes a few, but the host may be busy."""

GUID_SIZE = 16


@dataclass(frozen=True)
class Collected:
    """Both sides of the comparison.

    Attributes:
        config: the machine.
        ram: where RAM is.
        tables: the ACPI and SMBIOS files as they were built.
        published: all named files as the guest could read them; other than `tables` if somebody changed them.
        firmware_reads: what firmware had read when the report guest began.
        writable: names of the items that the guest may write.
        written: what those contain at the end.
        vmgenid_address: where firmware says that the VM generation id is.
        vmgenid_found: the 16 bytes that are there.
        report: what the guest told; None if it never did, and then `failure` says why.
        failure: why there is no report.
        guest_was_read: whether firmware read the report guest.
        log: what firmware printed on the debug port, or Linux on COM1.
        outcome: how the run ended.
        facts: what the machine was at the end.
        attempts: what firmware starts where no report guest is in the way; empty where there is nothing to boot.
        vmcoreinfo: where the guest's kernel says that its crash notes are, if the machine has that device.
    """

    config: MachineConfig
    ram: RamPlaces
    tables: dict[str, bytes]
    published: dict[str, bytes]
    firmware_reads: dict[str, ItemStatistics]
    writable: frozenset[str]
    written: dict[str, bytes]
    vmgenid_address: int | None
    vmgenid_found: bytes | None
    report: GuestReport | None
    failure: str
    guest_was_read: bool
    log: str
    outcome: Outcome
    facts: Facts
    attempts: Sequence[Attempt] = ()
    vmcoreinfo: VmCoreInfo | None = None


class _Host:
    """The host's half of the report guest: adds it to the machine, and takes its stream."""

    def __init__(self, kind: FirmwareKind, alter: Alter | None) -> None:
        self._kind = kind
        self._alter = alter
        self._fw_cfg: FwCfg | None = None
        self.tables: dict[str, bytes] = {}
        self.stream = bytearray()
        self.firmware_reads: list[ItemStatistics] = []

    def customize(self, fw_cfg: FwCfg) -> None:
        """Add the guest."""
        self._fw_cfg = fw_cfg
        self.add_guest(fw_cfg)

    def alter(self, tables: dict[str, bytes]) -> dict[str, bytes]:
        """Keep what the tables are, and give what they shall be."""
        self.tables = dict(tables)
        return tables if self._alter is None else self._alter(dict(tables))

    def add_guest(self, fw_cfg: FwCfg) -> None:
        """Let firmware start the report guest, and the guest answer."""
        fw_cfg.add_file(
            guest_report.STREAM_FILE, bytes(guest_report.STREAM_FILE_SIZE), writable=True, on_write=self._written
        )
        if self._kind is FirmwareKind.SEABIOS:
            fw_cfg.add_file(ROM_FILE, guests.report("report.bin").read_bytes())
        else:
            image = guests.report("report.efi").read_bytes()
            fw_cfg.add_item(Key.KERNEL_SIZE, struct.pack("<I", len(image)))
            fw_cfg.add_item(Key.KERNEL_DATA, image)

    def poll(self, _machine: Machine) -> None:
        """Called while the guest runs."""

    def report(self, _machine: Machine) -> GuestReport:
        """Decode what the guest sent.

        Raises:
            ReportError: it is no whole report.
        """
        return guest_report.decode(bytes(self.stream))

    def guest_key(self, fw_cfg: FwCfg) -> int:
        """The key of the item that holds the report guest."""
        return fw_cfg.key_of(ROM_FILE) if self._kind is FirmwareKind.SEABIOS else Key.KERNEL_DATA

    def _written(self, _offset: int, data: bytes) -> None:
        if not self.stream and self._fw_cfg is not None:
            self.firmware_reads = self._fw_cfg.items()
        if len(self.stream) + len(data) <= guest_report.STREAM_LIMIT:
            self.stream += data


class _LinuxHost(_Host):
    """The same for Linux, which comes as the machine's kernel and reports over COM1."""

    def add_guest(self, fw_cfg: FwCfg) -> None:
        """Nothing to do: it is the machine's kernel."""

    def poll(self, machine: Machine) -> None:
        """Take down what firmware read once Linux's driver has written: only after that it reads the items."""
        if not self.firmware_reads and machine.vmcoreinfo is not None and machine.fw_cfg is not None:
            self.firmware_reads = machine.fw_cfg.items()

    def guest_key(self, _fw_cfg: FwCfg) -> int:
        """The kernel's."""
        return Key.KERNEL_DATA

    def report(self, machine: Machine) -> GuestReport:
        """Decode what Linux printed."""
        return linux_report.decode(machine.serial.since(0))


def collect(
    config: MachineConfig,
    *,
    alter: Alter | None = None,
    deadline: float = DEADLINE,
    linux: bool = False,
    outputs: Outputs | None = None,
) -> Collected:
    """Boot, and wait for the report.

    Args:
        config: the machine; its firmware is OVMF or SeaBIOS, or with `linux` none.
        alter: gets the ACPI and SMBIOS files by name and gives those to publish instead: for experiments, and tests.
        deadline: seconds.
        linux: the machine's kernel is the Linux of `vmm.verify.linux_guest`, which reports instead of a guest of ours.
        outputs: as `vmm.Machine` takes it.

    Raises:
        ConfigError: other firmware, or a machine that leaves no room for the report guest.
        HostError: no KVM.
    """
    kind = config.firmware.kind
    if kind not in {FirmwareKind.OVMF, FirmwareKind.SEABIOS} and not (linux and config.direct):
        raise ConfigError(f"verify: the report guest runs under OVMF and SeaBIOS, and {config.firmware.path} is {kind}")
    if config.kernel is not None and not linux:
        raise ConfigError("verify: -kernel is taken, the report guest starts that way; leave it out")
    host = _LinuxHost(kind, alter) if linux else _Host(kind, alter)
    bare = config
    # What is compared is one boot: a guest that resets has failed.
    config = config._replace(reboot=bool(config.reboot))
    if kind is FirmwareKind.SEABIOS and config.drives and not linux:
        # One of the disks may boot, and the report guest would have no turn.
        config = config._replace(bootorder=(guest_report.ROM_PATH, *config.bootorder))
    with Machine(config, customize=host.customize, alter=host.alter, outputs=outputs) as machine:
        fw_cfg = machine.fw_cfg
        if fw_cfg is None:
            raise ConfigError("verify: the machine has fwctl instead of fw_cfg, which carries no tables")
        files = [item.name for item in fw_cfg.items() if _is_file(item)]
        writable = frozenset(name for name in files if fw_cfg.is_writable(name))
        initial = {name: fw_cfg.contents(name) for name in writable}
        outcome = machine.run(deadline=deadline, on_poll=host.poll).raise_interrupt()
        published = {name: fw_cfg.contents(name) for name in files} | initial
        written = {name: fw_cfg.contents(name) for name in writable - {guest_report.STREAM_FILE}}
        log = machine.serial.text() if linux else machine.debugcon.text()
        ended, vmcoreinfo = fw_cfg.items(), machine.vmcoreinfo
        facts = facts_of(machine)
        vmgenid_address, vmgenid_found = machine.vmgenid_address, None
        if vmgenid_address is not None:
            vmgenid_found = _read(machine, vmgenid_address, GUID_SIZE)
        report, failure = None, ""
        try:
            report = host.report(machine)
        except ReportError as error:
            failure = f"{error}; {outcome.message}"
    ours = {guest_report.STREAM_FILE, ROM_FILE}
    return Collected(
        config=config,
        ram=machine.memory.places,
        tables=host.tables,
        published={name: data for name, data in published.items() if name not in ours},
        firmware_reads={item.name: item for item in host.firmware_reads},
        writable=writable - ours,
        written=written,
        vmgenid_address=vmgenid_address,
        vmgenid_found=vmgenid_found,
        report=report,
        failure=failure,
        guest_was_read=config.direct or any(item.key == host.guest_key(fw_cfg) and item.bytes_read for item in ended),
        log=log,
        outcome=outcome,
        vmcoreinfo=vmcoreinfo,
        facts=facts,
        attempts=() if linux else _attempts(bare, min(deadline, 10 + 4 * outcome.elapsed_s)),
    )


def _attempts(config: MachineConfig, deadline: float) -> Sequence[Attempt]:
    return taken.attempts(config, deadline) if config.drives or config.bootorder else ()


def _read(machine: Machine, address: int, size: int) -> bytes | None:
    try:
        return bytes(machine.memory.read(address, size))
    except ValueError:
        return None


def _is_file(item: ItemStatistics) -> bool:
    return 0x20 <= item.key < 0x4000
