"""What a thread that serves the guest is refused: a guest asks a device for it, at a port, on its vCPU's thread."""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN
from real_mode_rom import image
from vmm._native import ffi, lib

from vmm import Machine
from vmm.bus import Device
from vmm.run.outcome import Reason
from vmm.sandbox import offers_seccomp
from vmm.softcpu import engine

pytestmark = pytest.mark.needs_kvm

PORT = 0x580
PARENT = os.getppid()
ASK = "ba 80 05 b0 01 ee fa f4"  # mov dx, 0x580; mov al, 1; out dx, al; cli; hlt
POWER_OFF_AFTER = (
    "ba 80 05 b0 01 ee"  # the same, and the PC's ACPI block at 0x600 (PIIX4: PMBASE, PMREGMISC), then SLP_EN
    "66 b8 40 0b 00 80 ba f8 0c 66 ef 66 b8 01 06 00 00 ba fc 0c 66 ef"
    "66 b8 80 0b 00 80 ba f8 0c 66 ef b0 01 ba fc 0c ee"
    "ba 04 06 b8 00 20 ef fa f4"
)

libc = ctypes.CDLL(None, use_errno=True)


def syscall(name: str, *arguments: Any) -> None:
    numbers = {
        "openat": 257, "open": 2, "execve": 59, "socket": 41, "connect": 42, "ptrace": 101, "kill": 62, "tgkill": 234,
        "ioctl": 16, "write": 1, "read": 0, "mmap": 9, "mprotect": 10, "clone": 56, "fork": 57, "unlink": 87,
        "pread64": 17, "pwrite64": 18, "fdatasync": 75, "fallocate": 285, "ftruncate": 77, "close": 3,
        "clock_nanosleep": 230,
        "prctl": 157, "newfstatat": 262, "setuid": 105, "exit_group": 231, "process_vm_readv": 310,
    }  # fmt: skip
    # ctypes would make an int of an address.
    words = (ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    if libc.syscall(numbers[name], *words) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class AtRequest(Device):
    """Does something on the thread that serves the guest's access."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what
        self.error: OSError | None = None
        self.answered: object = None

    def write(self, offset: int, size: int, value: int) -> None:
        try:
            self.answered = self.what()
        except OSError as error:
            self.error = error


AT_FDCWD = -100
PATH = ctypes.create_string_buffer(b"/etc/passwd")
ADDRESS = ctypes.create_string_buffer(socket.AF_UNIX.to_bytes(2, "little") + b"/run/socket\0")
PAGE = mmap.mmap(-1, mmap.PAGESIZE)
PAGE_ADDRESS = ctypes.addressof(ctypes.c_char.from_buffer(PAGE))
FILE = os.memfd_create("a file that is open")
os.ftruncate(FILE, mmap.PAGESIZE)
READ_AND_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
EXECUTABLE = mmap.PROT_READ | mmap.PROT_EXEC
KVM_GET_API_VERSION = 0xAE00
PTRACE_ATTACH = 16
PR_SET_PDEATHSIG = 1

ATTACKS: dict[str, tuple[str, Callable[[Machine], object]]] = {
    "open": ("open", lambda _: syscall("open", PATH, os.O_RDONLY)),
    "openat": ("openat", lambda _: syscall("openat", AT_FDCWD, PATH, os.O_RDONLY)),
    "open-for-writing": ("openat", lambda _: syscall("openat", AT_FDCWD, PATH, os.O_WRONLY)),
    "exec": ("execve", lambda _: syscall("execve", PATH, None, None)),
    "fork": ("fork", lambda _: syscall("fork")),
    "clone": ("clone", lambda _: syscall("clone", signal.SIGCHLD, None, None, None, None)),
    "socket": ("socket", lambda _: syscall("socket", socket.AF_INET, socket.SOCK_STREAM, 0)),
    "connect": ("connect", lambda _: syscall("connect", 0, ADDRESS, len(ADDRESS))),
    "ptrace": ("ptrace", lambda _: syscall("ptrace", PTRACE_ATTACH, PARENT, None, None)),
    "other-memory": ("process_vm_readv", lambda _: syscall("process_vm_readv", PARENT, None, 0, None, 0, 0)),
    "kill": ("kill", lambda _: syscall("kill", PARENT, 0)),
    "signal-to-another": ("tgkill", lambda _: syscall("tgkill", PARENT, PARENT, signal.SIGABRT)),
    "another-signal": ("tgkill", lambda _: syscall("tgkill", os.getpid(), os.getpid(), signal.SIGTERM)),
    "ioctl-on-another-file": ("ioctl", lambda m: syscall("ioctl", m.kvm.fd, KVM_GET_API_VERSION, 0)),
    "ioctl-of-another-kind": ("ioctl", lambda m: syscall("ioctl", m.vcpus[0].fd, 0x5401, 0)),  # TCGETS
    "another-ioctl-of-the-machine": ("ioctl", lambda m: syscall("ioctl", m.vm.fd, lib.KVM_CREATE_VCPU, 1)),
    "flush-elsewhere": ("fdatasync", lambda _: syscall("fdatasync", FILE)),
    "allocate-elsewhere": ("fallocate", lambda _: syscall("fallocate", FILE, 0, 0, 512)),
    "ioctl-of-another-vcpu": ("ioctl", lambda m: syscall("ioctl", m.vcpus[1].fd, lib.KVM_GET_MP_STATE, 0)),
    "write-elsewhere": ("write", lambda _: syscall("write", 2, PATH, 0)),
    "read-elsewhere": ("read", lambda _: syscall("read", 0, PATH, 0)),
    "stat": ("newfstatat", lambda _: syscall("newfstatat", AT_FDCWD, PATH, PAGE_ADDRESS, 0)),
    "unlink": ("unlink", lambda _: syscall("unlink", ctypes.create_string_buffer(b"/nonexistent"))),
    "new-code": ("mmap", lambda _: syscall("mmap", 0, 4096, EXECUTABLE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)),
    "map-a-file": ("mmap", lambda _: syscall("mmap", 0, mmap.PAGESIZE, READ_AND_WRITE, mmap.MAP_SHARED, FILE, 0)),
    "changed-code": ("mprotect", lambda _: syscall("mprotect", PAGE_ADDRESS, mmap.PAGESIZE, EXECUTABLE)),
    "prctl": ("prctl", lambda _: syscall("prctl", PR_SET_PDEATHSIG, 0, 0, 0, 0)),
    "setuid": ("setuid", lambda _: syscall("setuid", 0)),
    "exit": ("exit_group", lambda _: syscall("exit_group", 0)),
}


@pytest.fixture
def ask(vmm_machine: Callable[..., Machine], tmp_path: Path) -> Callable[..., tuple[Machine, AtRequest]]:
    """Make a machine whose guest asks for something."""
    rom = tmp_path / "rom.bin"

    def make(what: Callable[[Machine], object], code: str = ASK, **options: Any) -> tuple[Machine, AtRequest]:
        rom.write_bytes(image(code))
        options = {"sandbox": "threads", "serial": f"file:{tmp_path / 'serial'}"} | options
        machine = vmm_machine(str(rom), machine="pc", cpus=2, **options)
        device = AtRequest(lambda: what(machine))
        machine.ports.add(PORT, PORT, device, "at request")
        return machine, device

    return make


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_kernel_refuses_it_and_the_run_says_so(ask: Callable[..., tuple[Machine, AtRequest]], attack: str) -> None:
    name, what = ATTACKS[attack]
    machine, device = ask(what)
    outcome = machine.run(deadline=60)
    assert device.error is not None
    assert device.error.errno == errno.EPERM
    assert (outcome.reason, outcome.exit_status) == (Reason.REFUSED, 1)
    assert outcome.message.startswith(f"the sandbox refused {name} to the thread of vCPU 0, at RIP 0x")
    assert "\n" not in outcome.message
    assert machine.run().reason is Reason.REFUSED


def test_without_the_sandbox_it_succeeds(ask: Callable[..., tuple[Machine, AtRequest]]) -> None:
    machine, device = ask(ATTACKS["openat"][1], POWER_OFF_AFTER, sandbox="off")
    assert machine.run(deadline=60).reason is Reason.POWER_OFF
    assert device.error is None


def test_what_malloc_asks_is_refused_quietly(ask: Callable[..., tuple[Machine, AtRequest]]) -> None:
    path = ctypes.create_string_buffer(b"/proc/sys/vm/overcommit_memory")
    machine, device = ask(lambda _: syscall("openat", AT_FDCWD, path, os.O_RDONLY), POWER_OFF_AFTER)
    assert machine.run(deadline=60).reason is Reason.POWER_OFF
    assert device.error is not None
    assert device.error.errno == errno.EPERM


def test_other_threads_are_as_they_were(ask: Callable[..., tuple[Machine, AtRequest]], tmp_path: Path) -> None:
    machine, device = ask(lambda _: None, POWER_OFF_AFTER)
    seen: list[str] = []

    def look(_: Machine) -> None:
        (tmp_path / "file").write_text("written", encoding="ascii")
        seen.append((tmp_path / "file").read_text(encoding="ascii"))
        with socket.socket():
            pass

    assert machine.run(deadline=60, on_poll=look).reason is Reason.POWER_OFF
    look(machine)
    assert seen
    assert device.error is None
    assert (offers_seccomp(), machine.sandbox.missing) == (True, [])


def test_a_thread_of_timers_is_under_it_too(ask: Callable[..., tuple[Machine, AtRequest]]) -> None:
    errors: list[int | None] = []

    def attempt() -> None:
        try:
            os.close(os.open("/etc/passwd", os.O_RDONLY))
        except OSError as error:
            errors.append(error.errno)
        machine.stop()

    def arm(machine: Machine) -> None:
        service = machine.platform.timers
        service.timer(attempt).arm(service.clock())

    machine, _ = ask(arm)
    machine.run(deadline=60)
    assert errors == [errno.EPERM]


@pytest.mark.parametrize("console", ["serial", "debugcon"])
def test_files_that_were_named_are_written(vmm_machine: Callable[..., Machine], tmp_path: Path, console: str) -> None:
    port = {"serial": "f8 03", "debugcon": "02 04"}[console]
    rom = tmp_path / "rom.bin"
    rom.write_bytes(image(f"ba {port} b0 41 ee" + POWER_OFF_AFTER))
    machine = vmm_machine(str(rom), machine="pc", sandbox="threads", **{console: f"file:{tmp_path / 'out'}"})
    assert machine.run(deadline=60).reason is Reason.POWER_OFF
    assert (tmp_path / "out").read_bytes() == b"A"


@pytest.mark.hw
def test_what_loads_late_still_does(vmm_machine: Callable[..., Machine]) -> None:
    # Tables are built, and an instruction is disassembled, by modules that the vCPU's thread cannot open.
    probe = vmm_machine("probe", sandbox="threads", accel=PLAIN)
    assert probe.run(deadline=60).reached
    assert "etc/acpi/tables" in probe.debugcon.text()


@pytest.mark.usefixtures("kvm_device")
def test_descriptors_of_kvm_are_what_the_filter_names(ask: Callable[..., tuple[Machine, AtRequest]]) -> None:
    state = ffi.new("struct kvm_mp_state *")
    machine, device = ask(
        lambda m: fcntl.ioctl(m.vcpus[0].fd, lib.KVM_GET_MP_STATE, ffi.buffer(state)), POWER_OFF_AFTER
    )
    assert machine.run(deadline=60).reason is Reason.POWER_OFF
    assert (device.error, device.answered) == (None, 0)


def disk_calls(image: int, event: int, vm: int) -> dict[str, tuple[Callable[[], object], int]]:
    """What a thread of a disk tries, with the errno that it gets."""
    line = ffi.new("struct kvm_irq_level *")
    elsewhere = os.memfd_create("elsewhere")
    allowed: dict[str, Callable[[], object]] = {
        "read": lambda: syscall("pread64", image, PAGE_ADDRESS, 512, 0),
        "write": lambda: syscall("pwrite64", image, PAGE_ADDRESS, 512, 0),
        "flush": lambda: syscall("fdatasync", image),
        "discard": lambda: syscall("fallocate", image, 3, 0, 512),
        "wake": lambda: syscall("write", event, PAGE_ADDRESS, 8),
        "interrupt": lambda: syscall("ioctl", vm, lib.KVM_IRQ_LINE, int(ffi.cast("uintptr_t", line))),
    }
    refused: dict[str, Callable[[], object]] = {
        "read elsewhere": lambda: syscall("pread64", elsewhere, PAGE_ADDRESS, 1, 0),
        "write elsewhere": lambda: syscall("write", elsewhere, PAGE_ADDRESS, 1),
        "truncate": lambda: syscall("ftruncate", image, 0),
        "another ioctl": lambda: syscall("ioctl", vm, lib.KVM_GET_CLOCK, 0),
        "memory": lambda: syscall("mmap", 0, 4096, READ_AND_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0),
        "changed code": lambda: syscall("mprotect", PAGE_ADDRESS, mmap.PAGESIZE, EXECUTABLE),
        "name": lambda: syscall("prctl", PR_SET_PDEATHSIG, 0, 0, 0, 0),
        "sleep": lambda: syscall("clock_nanosleep", 0, 0, None, None),
        "close": lambda: syscall("close", elsewhere),
        "exit": lambda: syscall("exit_group", 0),
        "kill itself": lambda: syscall("tgkill", os.getpid(), os.getpid(), signal.SIGTERM),
        "openat": lambda: syscall("openat", AT_FDCWD, PATH, os.O_RDONLY),
        "exec": lambda: syscall("execve", PATH, None, None),
        "socket": lambda: syscall("socket", socket.AF_INET, socket.SOCK_STREAM, 0),
        "new thread": lambda: syscall("clone", 0x10F00, None, None, None, None),
    }
    return {name: (call, 0) for name, call in allowed.items()} | {
        name: (call, errno.EPERM) for name, call in refused.items()
    }


def test_a_disks_thread_uses_its_files_and_interrupts_alone() -> None:
    image = os.memfd_create("image")
    os.ftruncate(image, mmap.PAGESIZE)
    event = os.eventfd(0)
    with Machine("exit", accel="kvm", sandbox="off") as machine:
        calls = disk_calls(image, event, machine.vm.fd)
        disk = ffi.new("struct sandbox_disk *", {"vm": machine.vm.fd, "count": 2, "files": [image, event]})
        found: dict[str, int] = dict.fromkeys(calls, -1)

        def attempt() -> None:
            assert lib.sandbox_filter_disk(disk) == 0
            for name, (call, _) in calls.items():
                try:
                    call()
                    found[name] = 0
                except OSError as error:
                    found[name] = error.errno or -1

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert found == {name: expected for name, (_, expected) in calls.items()}


@pytest.mark.skipif(not engine.is_built(), reason="the software CPU is not built")
def test_with_virtual_time_the_vcpus_thread_uses_the_image(vmm_machine: Callable[..., Machine], tmp_path: Path) -> None:
    """For the disk has no threads."""
    rom, path = tmp_path / "rom.bin", tmp_path / "image"
    rom.write_bytes(image(POWER_OFF_AFTER))
    path.write_bytes(bytes(mmap.PAGESIZE))
    machine = vmm_machine(
        str(rom), machine="pc", sandbox="threads", clock="virtual", drives=f"file={path},format=raw,snapshot=on"
    )
    (disk,) = machine.platform.disks
    original, overlay = disk.guest_files
    calls: list[Callable[[], None]] = [
        lambda: syscall("pread64", original, PAGE_ADDRESS, 512, 0),
        lambda: syscall("pwrite64", overlay, PAGE_ADDRESS, 512, 0),
        lambda: syscall("fdatasync", overlay),
        lambda: syscall("fallocate", overlay, 3, 0, 512),
    ]
    device = AtRequest(lambda: [call() for call in calls])
    machine.ports.add(PORT, PORT, device, "at request")
    assert machine.run(deadline=60).reason is Reason.POWER_OFF
    assert device.error is None
    assert device.answered == [None] * 4


def test_no_memory_is_written_and_executed(vmm_machine: Callable[..., Machine]) -> None:
    def mappings() -> list[list[str]]:
        return [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]

    # Other tests' callbacks for C, which are libffi's, stay in this process.
    others = {fields[0] for fields in mappings()}
    machine = vmm_machine("exit", accel="kvm+softcpu", sandbox="threads")
    assert machine.run(deadline=60).reached
    maps = mappings()
    assert not [fields for fields in maps if "w" in fields[1] and "x" in fields[1] and fields[0] not in others]
    assert {"rw-s", "r-xs"} <= {fields[1] for fields in maps if "translated code" in fields[-1]}
    machine.close()
    assert "translated code" not in Path("/proc/self/maps").read_text(encoding="ascii")
