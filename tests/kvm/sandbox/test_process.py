"""What the process of ``vmm boot`` is refused once its guest has begun, and what it can do still."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from accelerators import PLAIN
from real_mode_rom import RESET, image

import vmm
from vmm.sandbox import landlock_version

pytestmark = pytest.mark.needs_kvm

VMM = [sys.executable, "-m", "vmm"]

BEGIN = """
import ctypes, errno, fcntl, json, mmap, os, resource, signal, socket, sys, termios, threading
from vmm import Machine
from vmm.sandbox import refused

libc = ctypes.CDLL(None, use_errno=True)
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
tcp, target = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
master, terminal = os.openpty()
page = mmap.mmap(-1, mmap.PAGESIZE)
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
old_thread = threading.Event()
asked = threading.Event()
before = []

def raw(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "")

def early():  # a thread that was there before
    asked.wait()
    try:
        open(sys.argv[1] + ".new", "w")
    except OSError as error:
        before.append(error.errno)

thread = threading.Thread(target=early)
thread.start()
machine = Machine("exit", accel="kvm", sandbox="whole")
assert machine.run(deadline=60).reached
asked.set()
thread.join()
"""


END = """
found = {"earlier thread": errno.errorcode[before[0]] if before else "done"}
for name, code in json.loads(sys.argv[2]).items():
    try:
        exec(code)
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of everything that is attempted below, in one process that has run a machine."""
    path = tmp_path_factory.mktemp("sandbox") / "socket"
    command = [sys.executable, "-c", BEGIN + END, str(path), json.dumps(REFUSED | CLOSED | ALLOWED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


REFUSED = {
    "open for writing": "open(sys.argv[1] + '.new', 'w')",
    "open to append": "open('/dev/null', 'a')",
    "open for both": "os.open('/dev/null', os.O_RDWR)",
    "open with truncation": "os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    "open, the old call": "raw(2, b'/dev/null', 0)",
    "remove": "os.unlink(sys.argv[1])",
    "rename": "os.rename(sys.argv[1], sys.argv[1] + '.new')",
    "mkdir": "os.mkdir(sys.argv[1] + '.new')",
    "chmod": "os.chmod(sys.argv[1], 0o777)",
    "exec": "os.execv('/bin/true', ['true'])",
    # Not os.fork(): glibc 2.41 blocks all signals before, and the kernel kills who cannot be told of a refused call.
    "fork": "raw(57)",
    "clone": "raw(56, signal.SIGCHLD, None, None, None, None)",
    "vfork": "raw(58)",
    "socket": "socket.socket()",
    "connect": "raw(42, client.fileno(), None, 0)",
    "connect by sending": "tcp.shutdown(socket.SHUT_RD); tcp.sendto(b'x', socket.MSG_FASTOPEN, target.getsockname())",
    "bind": "raw(49, client.fileno(), None, 0)",
    "kill": "os.kill(os.getppid(), 0)",
    "kill itself": "os.kill(os.getpid(), 0)",
    "signal to another": "raw(234, os.getppid(), os.getppid(), 0)",
    "ptrace": "raw(101, 16, os.getppid(), 0, 0)",
    "memory of another": "raw(310, os.getppid(), None, 0, None, 0, 0)",
    "typing into the terminal": "fcntl.ioctl(terminal, termios.TIOCSTI, b'x')",
    "new code": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "code that is written": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "changed code": "raw(10, address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)",
    "memory file": "os.memfd_create('x')",
    "setuid": "os.setuid(os.getuid())",
    "raise a limit": "raw(302, 0, resource.RLIMIT_CORE, bytes(16), None)",
    "be traced": "raw(157, 0x59616d61, -1, 0, 0, 0)",
    "name spaces": "raw(272, 0x10000000)",
    "bpf": "raw(321, 0, None, 0)",
    "io_uring": "raw(425, 1, None)",
    "the other layout of x32": "raw(0x40000001, 1, None, 0)",
    "signals from files": "fcntl.fcntl(0, fcntl.F_SETOWN, 1)",
}


CLOSED = {
    "the user's files": "open('/etc/passwd')",
    "other processes": "open('/proc/self/mem')",
    "devices": "open('/dev/kvm')",
    "directories": "os.listdir('/etc')",
    "where it began": "os.listdir('.')",
}
"""By Landlock."""

ALLOWED = {
    "reading modules": "open(os.__file__).read()",
    "modules in C": "import _lsprof, _zoneinfo",
    "threads": "thread = threading.Thread(target=print, args=('',), kwargs={'end': ''}); thread.start(); thread.join()",
    "writing to what is open": "os.write(master, b'')",
    "the terminal's settings": "termios.tcsetattr(terminal, termios.TCSADRAIN, termios.tcgetattr(terminal))",
    "the terminal's size": "os.get_terminal_size(terminal)",
    "a connection to what listens": "server, _ = listening.accept(); server.send(b'x'); assert client.recv(1) == b'x'; "
    "server.setblocking(False)",
    "signals to itself": "signal.signal(signal.SIGUSR1, lambda *_: None); signal.raise_signal(signal.SIGUSR1)",
    "memory": "mmap.mmap(-1, 1 << 20)",
    "which memory is used": "raw(27, address, mmap.PAGESIZE, ctypes.create_string_buffer(1))",
    "limits, to look at": "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)",
    "hashing": "import hashlib; hashlib.sha256(b'x')",
    "locks of files": "fcntl.fcntl(master, fcntl.F_GETFL)",
}


@pytest.mark.parametrize("attempt", [*REFUSED, "earlier thread"])
@pytest.mark.usefixtures("kvm_device")
def test_system_calls_are_refused(answers: dict[str, str], attempt: str) -> None:
    assert answers[attempt] == "EPERM"


@pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock, which keeps files from a process")
@pytest.mark.parametrize("attempt", CLOSED)
@pytest.mark.usefixtures("kvm_device")
def test_files_are_closed(answers: dict[str, str], attempt: str) -> None:
    assert answers[attempt] == "EACCES"


@pytest.mark.parametrize("attempt", ALLOWED)
@pytest.mark.usefixtures("kvm_device")
def test_what_a_run_needs_goes_on(answers: dict[str, str], attempt: str) -> None:
    assert answers[attempt] == "done"


def test_calls_of_32_bit_programs_end_the_process(tmp_path: Path) -> None:
    code = "b8 14 00 00 00 cd 80 c3"  # mov eax, 20 (getpid); int 0x80; ret
    program = f"""
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("{code}"))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
"""
    command = [
        sys.executable,
        "-c",
        BEGIN.replace("machine =", f"{program}\nmachine =") + "call()",
        str(tmp_path / "socket"),
    ]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == -signal.SIGSYS


def boot(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``vmm boot`` with these words."""
    command = [*VMM, "boot", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_a_report_takes_the_place_of_its_file(tmp_path: Path) -> None:
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    report.write_text("of an earlier run", encoding="ascii")
    report.chmod(0o640)
    was = report.stat()
    done = boot("exit", "-accel", PLAIN, "-q", "--json", report, "--html", page)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(report.read_text(encoding="utf-8"))["outcome"]["reason"] == "power-off"
    assert report.stat().st_ino != was.st_ino
    assert report.stat().st_mode == was.st_mode
    assert "<html" in page.read_text(encoding="utf-8")
    assert sorted(tmp_path.iterdir()) == [page, report]


def test_without_it_nothing_is_refused(tmp_path: Path) -> None:
    program = (
        BEGIN.replace('sandbox="whole"', 'sandbox="off"') + "open(sys.argv[1] + '.new', 'w').close(); print(before)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "socket")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def filters(pid: int) -> list[int]:
    """How many seccomp filters each thread of a process has; the kernel's own one, which KVM adds, is left out."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the one that a VM made ahead has has ended
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text(encoding="ascii").splitlines())
            if not status["Name"].startswith("kvm-"):
                found.append(int(status["Seccomp_filters"]))
    return sorted(found)


@pytest.mark.parametrize(("words", "expected"), [([], [1, 1, 2, 2]), (["--sandbox", "off"], [0, 0, 0])])
@pytest.mark.usefixtures("kvm_device")
def test_each_kind_of_thread_has_its_filters(words: list[str], expected: list[int]) -> None:
    # The main thread and, with a sandbox, the one that loads modules; the one of timers and the vCPU's.
    with subprocess.Popen([*VMM, "boot", "hang", "-accel", "kvm", "-q", *words]) as guest:
        try:
            until = time.monotonic() + 30
            while filters(guest.pid) != expected and time.monotonic() < until:
                time.sleep(0.02)
            assert filters(guest.pid) == expected
        finally:
            guest.send_signal(signal.SIGINT)
        assert guest.wait(30) == 130


@pytest.mark.usefixtures("kvm_device")
def test_a_disks_threads_have_one_too(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    words = ["-accel", "kvm", "-q", "-drive", f"file={disk},format=raw,if=virtio"]
    with subprocess.Popen([*VMM, "boot", "hang", *words]) as guest:
        try:
            until = time.monotonic() + 30
            while filters(guest.pid) != (expected := [1, 1] + [2] * 6) and time.monotonic() < until:
                time.sleep(0.02)
            assert filters(guest.pid) == expected
        finally:
            guest.send_signal(signal.SIGINT)
        assert guest.wait(30) == 130


@pytest.mark.usefixtures("kvm_device")
def test_a_machine_of_many_cpus_resets_in_it(tmp_path: Path) -> None:
    """More descriptors are open then than may still be opened."""
    (tmp_path / "rom").write_bytes(image(RESET))
    done = boot(str(tmp_path / "rom"), "-machine", "pc", "-accel", "kvm", "-smp", "40", "-q", "--max-resets", "2")
    assert done.stderr.startswith("vmm: the guest resets the machine again and again, after 2 resets still"), (
        done.stderr
    )


def test_a_word_that_it_does_not_know_is_refused() -> None:
    done = boot("exit", "--sandbox", "maybe")
    assert done.returncode == 2
    assert re.fullmatch(r"vmm: --sandbox.*\n", done.stderr)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_runs_the_guest() -> None:
    places = (Path(sys.executable).resolve(), Path(vmm.__file__))
    readable = all(path.stat().st_mode & 0o005 for place in places for path in (place, *place.parents))
    done = boot("exit", "-accel", PLAIN, "-q", "--user", "65534")
    if readable:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 4
        assert re.fullmatch(r"vmm: --user: user 65534 cannot read \S+, from which modules are loaded\n", done.stderr)


def test_an_unknown_user_is_refused() -> None:
    done = boot("exit", "--user", "no-such-user")
    assert (done.returncode, done.stderr) == (2, "vmm: --user no-such-user: there is no such user\n")


@pytest.mark.parametrize("home", [True, False], ids=["HOME", "no HOME"])
def test_a_failure_is_described_as_without_it(monkeypatch: pytest.MonkeyPatch, *, home: bool) -> None:
    if not home:
        monkeypatch.delenv("HOME", raising=False)
    done = boot("triple-fault", "-accel", PLAIN, "-no-reboot")
    assert done.returncode == 1
    assert re.match(r"vmm: triple fault on vCPU 0 at RIP 0x\w+ \(triple-fault\+0x\w+, main\+0x\w+\)", done.stderr)
    assert re.search(r"^  => \w+: 0f 0b +ud2$", done.stderr, re.MULTILINE)
    assert "the sandbox refused" not in done.stderr


def test_a_machine_that_is_late_is_described_with_its_firmware() -> None:
    done = boot("ovmf", "-serial", "none", "--timeout", "2")
    assert done.returncode == 3
    assert re.search(r"^  vCPU 0: at RIP 0x\w+ \(\w+\+0x\w+\)", done.stderr, re.MULTILINE), done.stderr
    assert "the sandbox refused" not in done.stderr


@pytest.mark.parametrize("address", ["tcp::0", "unix:socket"])
def test_a_debugger_finds_a_machine_in_it(tmp_path: Path, address: str) -> None:
    told, printed = debug(tmp_path, 1, "triple-fault", "-no-reboot", "-gdb", address, "-S")
    assert re.search(r"^triple fault on vCPU 0 ", printed, re.MULTILINE), printed
    assert "Program received signal SIGSEGV" in printed
    assert re.search(r"=> 0x\w+:\tud2", printed), printed
    assert told.startswith("vmm: triple fault on vCPU 0")
    assert list(tmp_path.iterdir()) == []


def test_a_debugger_finds_a_machine_that_runs_in_it(tmp_path: Path) -> None:
    told, printed = debug(tmp_path, 3, "hang", "-gdb", "tcp::0", "--timeout", "1")
    assert re.search(r"=> 0x\w+:\tjmp", printed), printed
    assert told.startswith("vmm: 1 s passed")


def debug(directory: Path, status: int, *words: str) -> tuple[str, str]:
    """Let gdb continue a machine; what ``vmm boot`` said behind its address, and what gdb printed."""
    command = [*VMM, "boot", "-accel", PLAIN, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=directory) as guest:
        assert guest.stderr is not None
        found = re.fullmatch(r"vmm: gdb finds the machine by '(target remote .*)'\n", guest.stderr.readline())
        assert found is not None
        gdb = ["gdb", "-q", "-batch", "-nx", "-ex", found[1], "-ex", "x/i $pc", "-ex", "continue", "-ex", "x/i $pc"]
        done = subprocess.run(gdb, capture_output=True, text=True, timeout=60, check=False, cwd=directory)
        told = guest.stderr.read()
    assert guest.returncode == status, told
    assert "the sandbox refused" not in told
    return told, done.stdout + done.stderr


def test_it_is_entered_from_a_directory_that_is_gone(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    command = [*VMM, "boot", "exit", "-accel", PLAIN, "-q"]
    script = 'rmdir "$PWD" && exec "$@"'
    done = subprocess.run(["sh", "-c", script, "sh", *command], cwd=here, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
