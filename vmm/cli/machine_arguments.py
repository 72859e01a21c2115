"""The options that describe a machine, in QEMU's and in bhyve's spelling: for every command that starts one."""

from __future__ import annotations

from vmm.cli.parser import AddUp
from vmm.config.fields import DEFAULT_MAX_RESETS
from vmm.config.parts import Sandboxing
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.cli.parser import Parser

MACHINE_KEYS = (
    *("type", "fwcfg", "fwctl-ext", "hw.ncpu", "smbios-entry-point-type", "max-ram-below-4g", "hpet", "s3", "smm"),
    *("secure-flash", "acpi", "hmat"),
)

FIRMWARE_HELP = """\
FIRMWARE is a path, or one of these names: ovmf (the default), seabios, bhyve, probe (or another guest of ours). Names
are looked up in QEMU's firmware descriptors and in the places where distributions put images.
"""


def add_machine_arguments(parser: Parser, sandbox: Sandboxing = Sandboxing.OFF) -> None:
    """Add the options of the machine to a command's parser; FIRMWARE is :meth:`Parser.parse`'s.

    Args:
        parser: the command's.
        sandbox: how far the command can restrict itself.
    """
    parser.set_defaults(widest_sandbox=sandbox)
    parser.machine_keys = MACHINE_KEYS
    machine = parser.add_argument_group("machine")
    add = machine.add_argument
    add(
        "-smp",
        metavar="N[,maxcpus=M][,KEY=...]",
        action=AddUp,
        const="cpus",
        help="CPUs at boot, and how many there may be once more are plugged in (default 1); sockets=S, dies=D, cores=C "
        "and threads=T arrange them; what is left out is as in QEMU: cores first",
    )
    add("-c", metavar="N", dest="bhyve_cpus", help="bhyve's spelling of -smp N")
    add(
        "-cpu",
        metavar="host[,KEY=...]",
        help="the host's processor with phys-bits=N bits of physical addresses, or without a feature: -svm or svm=off; "
        "a name that is not known gets the list",
    )
    add(
        "-numa",
        metavar="node,... | cpu,... | dist,... | ...",
        action="append",
        default=[],
        help="node[,nodeid=N][,cpus=FIRST[-LAST]][,mem=SIZE|,memdev=ID] is a NUMA node; cpu,node-id=N,socket-id=S (and "
        "die-id, core-id, thread-id) puts CPUs into it; dist,src=N,dst=N,val=10..255 says how far nodes are apart. "
        "Without CPUs, sockets are spread over the nodes; without mem, RAM is. With -machine hmat=on, "
        "hmat-lb,initiator=N,target=N,... says how fast memory is, hmat-cache,node-id=N,... that it has a cache, in "
        "QEMU's words",
    )
    add(
        "-object",
        metavar="memory-backend-ram,... | secret,...",
        action="append",
        default=[],
        help="memory-backend-ram,id=ID,size=SIZE: memory that -numa node,memdev=ID names; secret,id=ID,file=PATH: the "
        "passphrase of -drive file=…,format=luks,key-secret=ID or format=qcow2,encrypt.key-secret=ID, all of the file",
    )
    add(
        "-m",
        metavar="[size=]SIZE,...",
        help="guest RAM: 512M, 4G; a bare number is MiB (default 256M). maxmem=SIZE[,slots=N] keeps addresses free for "
        "memory that may be plugged in, up to so much RAM in so many pieces, and tells the guest of it; on q35 and pc",
    )
    add(
        "-machine",
        "-M",
        action=AddUp,
        const="type",
        metavar="TYPE[,KEY=...]",
        help="auto (default: what the firmware wants), q35, pc or bhyve; fwcfg=qemu|bhyve|auto chooses what answers at "
        "ports 0x510 and 0x511: fw_cfg, fwctl, or (default) the one that the image speaks; fwctl-ext=on answers NULL, "
        "ECHO and SET of fwctl; hw.ncpu=off does not offer the number of CPUs as bhyve does; "
        "smbios-entry-point-type=64 offers SMBIOS 3.0 instead of 2.8; max-ram-below-4g=SIZE moves more of RAM "
        "above 4 GiB; hpet=off leaves the HPET out, acpi=off the ACPI tables; hmat=on adds an HMAT to -numa's tables; "
        "s3=on offers suspend to RAM; "
        "smm=on|off|auto: system management mode (default: if the firmware needs it); secure-flash=on|off: only that "
        "mode may write the variable store (default: if the firmware needs it; QEMU says -global "
        "driver=cfi.pflash01,property=secure,value=on)",
    )
    add("-uuid", "-U", metavar="UUID", help="the machine's UUID (fw_cfg key 2)")
    images = parser.add_argument_group("firmware")
    add = images.add_argument
    add("-bios", metavar="PATH", help="QEMU's spelling of FIRMWARE")
    add(
        "-drive",
        metavar="if=...,file=PATH",
        action="append",
        default=[],
        help="if=pflash,format=raw,file=PATH[,readonly=on][,unit=0|1]: CODE first, then VARS. The guest's variables go "
        "into this VARS file; without -drive they go into a private copy. if=virtio (the default) is a disk, see below",
    )
    add(
        "-l",
        metavar="bootrom,...",
        dest="bootrom",
        help="bhyve's spelling: bootrom,ROM[,VARS][,fwcfg=qemu|bhyve|auto]",
    )
    _add_disk_arguments(parser)
    kernel = parser.add_argument_group("kernel")
    add = kernel.add_argument
    add(
        "-kernel",
        metavar="PATH",
        help="a bzImage, an ELF file with a PVH note, or a UEFI program: firmware loads it from fw_cfg and starts it",
    )
    add("-initrd", metavar="PATH", help="its initial RAM disk")
    add("-append", metavar="TEXT", help="its command line")
    add("-direct", action="store_true", help="start the kernel, a bzImage, at once: there is no firmware then")
    items = parser.add_argument_group("what the guest finds in fw_cfg or fwctl")
    add = items.add_argument
    add(
        "-fw_cfg",
        metavar="[name=]NAME,...",
        action="append",
        default=[],
        help="[name=]NAME,file=PATH or ,string=TEXT: an item of your own, like name=opt/org.example/greeting,string=hi "
        "(no NUL is added)",
    )
    add(
        "-f",
        metavar="[name=]NAME,...",
        dest="bhyve_fw_cfg",
        action="append",
        default=[],
        help="bhyve's spelling of -fw_cfg; as in bhyve, string=TEXT gets a NUL at its end",
    )
    add(
        "-fwctl",
        metavar="[name=]OID,...",
        action="append",
        default=[],
        help="[name=]OID,value=TEXT or ,file=PATH: a value of bhyve's fwctl, for fwcfg=bhyve; a decimal number becomes "
        "a 4-byte integer, other text gets a NUL, and everything is padded to a multiple of 4 bytes, without which the "
        "firmware's client never stops reading",
    )
    tables = parser.add_argument_group("tables")
    add = tables.add_argument
    add(
        "-acpitable",
        metavar="file=PATH",
        action="append",
        default=[],
        help="an ACPI table of your own, compiled AML for one; or sig=...,data=PATH for a body without its header. "
        "Length and checksum are made right, and what was wrong is said",
    )
    add(
        "-dsdt",
        metavar="PATH",
        help="a DSDT of your own, compiled AML, in the place of ours; it names chipset and devices as they are then",
    )
    add(
        "-smbios",
        metavar="type=N,FIELD=...",
        action="append",
        default=[],
        help="SMBIOS fields as in QEMU, like type=1,product=Name,serial=42; or file=PATH: whole structures",
    )
    add(
        "-e820",
        metavar="base=...",
        action="append",
        default=[],
        help="base=ADDRESS,size=SIZE,type=reserved|acpi|nvs|unusable|disabled|persistent|soft-reserved|ram|N: one more "
        "entry of the memory map, which overlaps no other; type=hole takes a range out of RAM's entries",
    )
    add(
        "-boot",
        metavar="KEY=...",
        action=AddUp,
        const="order",
        help="[order=]LETTERS,once=LETTERS,menu=on|off,splash=PATH,splash-time=MS,reboot-timeout=MS,strict=on|off",
    )
    add(
        "-bootorder",
        metavar="PATH",
        action="append",
        default=[],
        help="OpenFirmware path of what boots first; repeat it for what comes next, like /rom@genroms/own.bin",
    )
    add(
        "-option-rom",
        metavar="PATH[,bootindex=N]",
        action="append",
        default=[],
        help="an option ROM, which SeaBIOS takes from fw_cfg's genroms/, and its place in the boot order",
    )
    add(
        "-device",
        metavar="DEVICE",
        action="append",
        default=[],
        help="vmgenid[,guid=UUID|auto]: a VM generation id; vmcoreinfo: take the address of a kernel's crash notes; "
        "pvpanic[,events=1|2|3]: a port at which the guest's kernel says that it panicked, which ends the run; "
        "virtio-blk-pci,drive=ID[,bootindex=N][,serial=TEXT][,addr=SLOT]: the device that shows -drive if=none,id=ID; "
        "vhost-user-blk-pci,chardev=ID[,bootindex=N], vhost-user-fs-pci,chardev=ID,tag=NAME or vhost-user-device-pci,"
        "chardev=ID,virtio-id=N[,num_vqs=N][,config_size=N]: a device that another process serves; "
        "virtio-net-pci,netdev=ID[,mac=ADDRESS][,bootindex=N]: a network card of one",
    )
    consoles = parser.add_argument_group("consoles")
    add = consoles.add_argument
    add(
        "-serial",
        metavar="TARGET",
        help="COM1: stdio, file:PATH or none. stdio on a terminal is interactive (default: stdio)",
    )
    add(
        "-debugcon",
        metavar="TARGET",
        help="port 0x402, firmware's log: stdio, file:PATH or none (default: stdio; for SeaBIOS, which prints the same "
        "on the serial port, none)",
    )
    resets = parser.add_argument_group("resets")
    add = resets.add_argument
    add(
        "-no-reboot",
        action="store_true",
        help="a reset by the guest, or a triple fault, ends the machine, with status 1; else the machine starts again, "
        "unless it is a guest of ours, which so says that it failed",
    )
    add(
        "-action",
        metavar="reboot=reset|shutdown",
        help="QEMU's other spelling: reboot=shutdown is -no-reboot; reboot=reset restarts a guest of ours, too",
    )
    add(
        "--max-resets",
        metavar="N",
        default=str(DEFAULT_MAX_RESETS),
        help=f"end with status 1 when the guest resets the machine once more than this often (default "
        f"{DEFAULT_MAX_RESETS})",
    )
    host = parser.add_argument_group("host")
    host.add_argument(
        "-accel",
        metavar="ACCELERATOR[,coalesced=off]",
        default="auto",
        help="who executes the guest: kvm; kvm+softcpu, the software CPU beside KVM, for hosts whose KVM interprets "
        "ring 0; softcpu, the software CPU without KVM, for hosts that have none; auto (the default) decides. "
        "coalesced=off: every write to fw_cfg's selector and to the debug port leaves KVM, which else keeps "
        "them until somebody looks (never with --trace or --exit-times)",
    )
    host.add_argument(
        "--clock",
        metavar="host|virtual",
        default="host",
        help="what the guest's time goes by: the host's clock (default), or virtual: what the guest does, a nanosecond "
        "for each instruction, on -accel softcpu, whose CPUs then run in turn. It executes the same instructions in "
        "every run, waits take no time of ours, and the report counts by phase",
    )
    host.add_argument(
        "--record",
        metavar="PATH",
        help="of --clock virtual: log what the guest gets from outside (what is typed, the power button), each with "
        "its instruction: JSON lines; - is stdout",
    )
    host.add_argument(
        "--replay", metavar="PATH", help="let the guest get what --record logged, at the same instructions"
    )
    host.add_argument(
        "--dispatch",
        metavar="c|python",
        default="c",
        help="who answers fw_cfg's ports: c (default), or python to see what that costs (vmm bench does)",
    )
    host.add_argument(
        "--trace",
        metavar="PATH",
        help="log every access to fw_cfg, as JSON lines, and in the end what was never read; - is text on stderr. "
        "Each access is an exit then (coalesced=off)",
    )
    host.add_argument(
        "--sandbox",
        metavar="on|off",
        help="before the guest's first instruction, give up other programs, files, sockets and privileges; on (the "
        "default) does what this kernel offers, which vmm info tells",
    )
    host.add_argument(
        "--user",
        metavar="NAME|UID",
        help="before that, become this user; root can, and the files that were named are open by then",
    )
    host.add_argument(
        "-gdb",
        metavar="TARGET",
        help="let gdb or lldb look at the machine, at tcp:[HOST]:PORT (HOST is 127.0.0.1, PORT 0 any that is free) or "
        "unix:PATH; gdb's command is target remote HOST:PORT, and monitor help says what else there is",
    )
    host.add_argument("-s", action="store_const", dest="gdb", const="tcp::1234", help="the same as -gdb tcp::1234")
    host.add_argument("-S", action="store_true", dest="hold", help="wait for a debugger before the first instruction")
    host.add_argument(
        "--symbols",
        metavar="DIR",
        help="a folder with the files that have the symbols of what is loaded in the guest (edk2's "
        "Build/OvmfX64/DEBUG_GCC5, or where a vmlinux is): reports, --profile and monitor images name functions then. "
        "Files are found there by name; none is opened because a guest names it",
    )
    host.add_argument(
        "--exit-times",
        action="store_true",
        help="time every exit and device access, none of them coalesced; --json has the histograms",
    )


def _add_disk_arguments(parser: Parser) -> None:
    disks = parser.add_argument_group(
        "disks",
        "-drive [if=virtio,]file=PATH,format=raw is a disk (virtio-blk), that the guest may write; readonly=on forbids "
        "it, and snapshot=on puts what is written into a private file that is gone in the end (the default for files "
        "below /usr). format=qcow2, vmdk, vdi, vhdx, qed or luks has the image served by qemu-storage-daemon, "
        "which is started and ended, and so has file=nbd://HOST/EXPORT or file=https://HOST/PATH. "
        "cache=writeback|none|writethrough|directsync|unsafe is as in QEMU; discard=unmap gives what the guest "
        "discards back to the file system. if=none,id=ID is for a -device virtio-blk-pci. Images are locked as QEMU "
        "does it. bhyve's spelling is -s SLOT,virtio-blk,PATH, followed by ,ro ,nocache ,direct ,ser=TEXT or "
        ",bootindex=N",
    )
    add = disks.add_argument
    add(
        "--esp",
        metavar="DIR",
        help="a folder as the first disk: a copy of its files in a GPT disk's EFI system partition (FAT32), from which "
        "OVMF starts EFI/BOOT/BOOTX64.EFI, or its shell startup.nsh; what the guest writes there is gone in the end. "
        "Needs mtools",
    )
    add(
        "-chardev",
        metavar="socket,id=ID,path=SOCKET",
        action="append",
        default=[],
        help="where the backend of a -device vhost-user-…-pci or a -netdev listens (virtiofsd, qemu-storage-daemon, "
        "passt and their like)",
    )
    add(
        "-netdev",
        metavar="vhost-user,id=ID,chardev=ID",
        action="append",
        default=[],
        help="the network of a -device virtio-net-pci, which another process serves, such as passt --vhost-user",
    )
    add("-snapshot", action="store_true", help="snapshot=on for every disk, and VARS as they are")
