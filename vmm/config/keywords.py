"""The words in which Python describes a machine: the keyword arguments of `Machine` and of `MachineConfig.create`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from uuid import UUID

    from vmm.config.cpu_model import CpuModel
    from vmm.config.debugger import DebugAddress
    from vmm.config.items import FwCfgItem, FwCtlItem
    from vmm.config.numa import Numa, NumaNode
    from vmm.config.option_roms import OptionRom
    from vmm.config.parts import Accelerator, Clock, Dispatch, MachineType, Sandboxing, SystemManagement, Target
    from vmm.config.topology import Topology
    from vmm.disks.drives import Drive
    from vmm.firmware.images import Interface
    from vmm.inputs import InputFile
    from vmm.tables.acpi_user import UserTable
    from vmm.tables.boot_order import BootOptions
    from vmm.tables.e820 import E820Entry
    from vmm.tables.smbios_options import SmbiosOption


class MachineOptions(TypedDict, total=False):
    """A machine, described in keyword arguments; each may be left out, and None is as if it were.

    Attributes:
        variables: the user's VARS file; without it the guest writes a private copy of the template.
        persist: write what the guest stores back into ``variables``, which is the default, or into a firmware that is
            one file with both.
        cpus: vCPUs at boot; 1.
        max_cpus: CPUs that there is room for, by `vmm.Machine.plug_cpu`; ``cpus``.
        topology: sockets, dies, cores and threads of ``max_cpus``: a `vmm.config.topology.Topology`, or ``-smp``'s text
            such as ``"sockets=2,threads=2"``; one socket with one thread a core. Without
            ``cpus``, all are there.
        cpu: ``-cpu``'s text, such as ``"host,phys-bits=40,-svm"``, or a `vmm.config.cpu_model.CpuModel`; the host's.
        numa: NUMA nodes: `vmm.config.numa.NumaNode` each, a whole `vmm.config.numa.Numa`, or ``-numa`` texts.
        objects: ``-object`` texts: memory that ``-numa`` texts name.
        hmat: say in an HMAT how fast memory of nodes is; False.
        memory: ``"512M"`` (a bare number in a string is MiB), or an ``int`` of bytes; 256 MiB. Or ``-m``'s whole text.
        max_memory: what RAM may become as memory is plugged in, ``"2G"`` or bytes: the guest is told to keep addresses
            free, though no memory is ever plugged in here; as much as there is.
        memory_slots: in how many pieces, each of which may have to be on whole GiB; 0.
        max_ram_below_4g: where RAM is cut below 4 GiB at the latest; where the board cuts it.
        machine: ``auto``, ``q35``, ``pc`` or ``bhyve``.
        fwcfg: what answers at ports 0x510 and 0x511: ``auto``, ``qemu`` (fw_cfg) or ``bhyve`` (fwctl).
        fw_cfg: items by name; ``str`` becomes UTF-8 without NUL, a ``Path`` is read. Or ``-fw_cfg`` texts.
        fwctl: OIDs by name: int (4 bytes), bytes, str, or a callable that returns one of these. Or ``-fwctl``
            texts.
        fwctl_extensions: answer fwctl's NULL, ECHO and SET; False.
        cpu_count: offer the number of CPUs as bhyve does; False shows what firmware does without it.
        hpet: have an HPET; True.
        s3: offer S3, suspend to RAM, from which `Machine.wakeup` wakes; False.
        acpi: offer ACPI tables; True.
        smm: have system management mode: ``on``, ``off`` or, if the firmware needs it, ``auto``, the default.
        secure_flash: let only that mode write the variable store; where the firmware needs it.
        uuid: fw_cfg key 2 and SMBIOS type 1.
        serial: COM1: ``none``, ``stdio`` or ``file:PATH``; read it from Python in any case.
        debugcon: port 0x402, likewise.
        boot: ``-boot``'s text.
        kernel: bzImage, ELF with a PVH note, or UEFI program, handed over through fw_cfg.
        initrd: initial RAM disk.
        append: kernel command line; ``str`` becomes UTF-8.
        direct: start the kernel, a bzImage, without firmware.
        acpi_tables: whole tables as bytes or files, or ``-acpitable`` texts; one or several, as all that follow.
        dsdt: a DSDT that takes the place of ours: a file with compiled AML, or its bytes.
        smbios: ``-smbios`` texts, mappings with the same keys, or whole structures as bytes.
        smbios_entry_point: 32 for SMBIOS 2.8, which is the default, 64 for SMBIOS 3.0.
        e820: entries, or ``-e820`` texts.
        bootorder: OpenFirmware paths, the first to boot first, such as ``/rom@genroms/own.bin``.
        option_roms: a ``Path``, or ``-option-rom``'s text, which also has a boot index.
        devices: ``-device`` texts: ``vmgenid,guid=UUID|auto``, ``vmcoreinfo``, ``pvpanic``,
            ``virtio-blk-pci,drive=ID``, ``vhost-user-blk-pci,chardev=ID``, ``virtio-net-pci,netdev=ID``.
        drives: disks: a ``Path`` is a raw image that the guest may write; `vmm.disks.drives.Drive` says more, and so
            do ``-drive`` texts.
        chardevs: ``-chardev socket,id=ID,path=SOCKET`` texts: where backends of vhost-user devices listen.
        netdevs: ``-netdev vhost-user,id=ID,chardev=ID`` texts: which of these is a card's network.
        esp: a folder that is a disk, too: its files in an EFI system partition, as a copy.
        reboot: whether a reset by the guest restarts the machine, or ends it; it ends guests of ours, which say so that
            they fail, and restarts all others.
        max_resets: how often the guest may reset the machine within one run; 10.
        accel: ``auto``, ``kvm``, ``kvm+softcpu`` or ``softcpu``.
        clock: ``host``, or ``virtual``: the guest's time goes by what it executes, on the software CPU alone, so that
            each run executes the same instructions.
        record: path of a file for what such a guest gets from outside; "-" for stdout.
        replay: such a file, which the guest gets everything from.
        coalesced: let KVM keep writes to fw_cfg's selector and to the debug port, without an exit, until somebody
            looks; True. Not with ``exit_times`` or ``trace``, which look at each.
        dispatch: who answers fw_cfg's ports: ``c``, or ``python`` to show what that costs.
        exit_times: time every exit and device access; False.
        profile: look at what the vCPUs execute, a thousand times a second; False.
        coverage: note which lines of source the guest's code reaches, on the software CPU; False.
        trace: path of the access log, "-" for stderr.
        sandbox: ``off``, the default; ``threads``, which keeps vCPUs' threads from all but serving the guest; ``auto``:
            the same, unless code of the caller's runs on them (``customize``, ``alter``, a device that was added);
            ``whole``, after which the whole process opens nothing but modules, starts no program and connects to
            nothing, for good; or ``process``: the machine is in a process of its own, of which that is true.
        user: a name or number: whom the process belongs to once the first run begins; as root only.
        gdb: where a debugger finds the machine, ``tcp:[HOST]:PORT`` (port 0: any) or ``unix:PATH``; nowhere.
        hold: let the first run wait for a debugger; False.
        symbols: a folder, as of edk2's build, with the files that have the symbols of what is loaded: names of
            functions in reports, profiles and lists of images, and lines for ``coverage``.
    """

    variables: str | Path | None
    persist: bool | None
    cpus: int | None
    max_cpus: int | None
    topology: Topology | str | None
    cpu: CpuModel | str | None
    numa: Numa | Iterable[NumaNode | str] | NumaNode | str | None
    hmat: bool | None
    objects: Iterable[str] | str | None
    memory: str | int | None
    max_memory: str | int | None
    memory_slots: int | None
    max_ram_below_4g: str | int | None
    machine: MachineType | str | None
    fwcfg: Interface | str | None
    fw_cfg: Mapping[str, bytes | str | Path] | Sequence[FwCfgItem | str] | str | None
    fwctl: Mapping[str, Any] | Sequence[FwCtlItem | str] | str | None
    fwctl_extensions: bool | None
    cpu_count: bool | None
    hpet: bool | None
    s3: bool | None
    acpi: bool | None
    smm: SystemManagement | str | None
    secure_flash: bool | None
    uuid: UUID | str | None
    serial: Target | str | None
    debugcon: Target | str | None
    boot: BootOptions | str | None
    kernel: str | Path | InputFile | None
    initrd: str | Path | InputFile | None
    append: str | bytes | None
    direct: bool | None
    acpi_tables: Iterable[UserTable | bytes | Path | str] | UserTable | bytes | Path | str | None
    dsdt: UserTable | bytes | Path | str | None
    smbios: Iterable[SmbiosOption | Mapping[str, Any] | bytes | str] | SmbiosOption | str | None
    smbios_entry_point: int | None
    e820: Iterable[E820Entry | str] | E820Entry | str | None
    bootorder: Iterable[str] | str | None
    option_roms: Iterable[OptionRom | Path | str] | OptionRom | Path | str | None
    devices: Iterable[str] | str | None
    drives: Iterable[Drive | Path | str] | Drive | Path | str | None
    chardevs: Iterable[str] | str | None
    netdevs: Iterable[str] | str | None
    esp: str | Path | None
    reboot: bool | None
    max_resets: int | None
    accel: Accelerator | str | None
    clock: Clock | str | None
    record: str | Path | None
    replay: str | Path | InputFile | None
    coalesced: bool | None
    dispatch: Dispatch | str | None
    exit_times: bool | None
    profile: bool | None
    coverage: bool | None
    trace: str | Path | None
    sandbox: Sandboxing | str | None
    user: str | None
    gdb: DebugAddress | str | None
    hold: bool | None
    symbols: str | Path | None
