"""`vmm boot --html`: the page of real runs, and what it costs those who don't ask for it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from html_page import check_self_contained, read

from vmm import installation
from vmm.firmware import guests
from vmm.installation import version
from vmm.report import page as report_page

pytestmark = pytest.mark.needs_kvm

SEABIOS = Path("/usr/share/seabios/bios-256k.bin")
NO_CONSOLES = ("-serial", "none", "-debugcon", "none")


def vmm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmm", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def text_of(path: Path) -> str:
    html = path.read_text(encoding="utf-8")
    check_self_contained(html)
    return " ".join(read(html).text.split())


def test_our_probe_and_a_hostile_name(tmp_path: Path) -> None:
    page, data = tmp_path / "page.html", tmp_path / "report.json"
    name = "opt/<script>alert(1)</script>"
    item = f"{name},string=1"
    run = vmm("boot", "probe", "-smp", "3", "-fw_cfg", item, *NO_CONSOLES, "--html", page, "--json", data)
    assert run.returncode == 0, run.stderr
    assert page.read_text(encoding="utf-8") == report_page.render(json.loads(data.read_text()))
    text = text_of(page)
    assert "the guest powered the machine off" in text
    assert "vCPUs 3 of 3" in text
    assert f"item: {name} key" in text  # on the console
    assert "cpus started: 3" in text
    assert "Time spent in vmm" not in text
    items = {item["name"]: item for item in json.loads(data.read_text())["fw_cfg"]["items"]}
    assert f"vmm boot version {version()} 20" in text
    assert f"$ vmm boot probe -smp 3 -fw_cfg '{item}'" in text
    (image,) = json.loads(data.read_text())["origin"]["images"]
    assert f"firmware {guests.path('probe')}" in text
    assert f"sha256 {image['sha256']}" in text
    e820 = items["etc/e820"]
    assert f"etc/e820 {e820['key']:#x} 20 1 {e820['reads']} 20 yes" in text
    assert items[name]["selects"] == 0


def test_seabios_with_its_times(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ("--exit-times", "--until", "No bootable device", "--timeout", "60", *NO_CONSOLES)
    run = vmm("boot", "seabios", "-smp", "2", *words, "--html", page, "--quiet")
    assert run.returncode == 0, run.stderr
    text = text_of(page)
    assert "interface QEMU's fw_cfg (SeaBIOS speaks fw_cfg)" in text
    assert "Searching bootorder for: HALT" in text
    assert "Never read" in text
    assert "first output on serial" in text
    assert "out 0x402 debugcon" in text
    assert f"sha256 {hashlib.sha256(SEABIOS.read_bytes()).hexdigest()}" in text
    assert " POST boot " in text
    assert "debugcon: enter handle_19:" in text
    assert "fw_cfg item etc/e820 selected" in text
    assert "RAM, write-protected" in text  # SeaBIOS locks its copy of itself


@pytest.mark.parametrize(
    ("guest", "words", "status", "said"),
    [
        ("triple-fault", (), 1, "RIP"),
        ("silent", ("--timeout", "1"), 3, "The guest printed nothing, on the serial port"),
        ("conformance-fwctl", ("-machine", "fwcfg=bhyve"), 0, "GET hw.ncpu OK 01 00 00 00"),
    ],
)
def test_guests_that_fail_are_silent_or_speak_fwctl(
    tmp_path: Path, guest: str, words: tuple[str, ...], status: int, said: str
) -> None:
    page = tmp_path / "page.html"
    run = vmm("boot", guests.path(guest), *words, *NO_CONSOLES, "--html", page)
    assert run.returncode == status, run.stderr
    assert said in text_of(page)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--html", "/nonexistent/page"], "--html /nonexistent/page: cannot write: no such file or directory"),
        (["--html", "-"], "--html -: a page goes to a file; give its path"),
    ],
)
def test_a_page_that_cannot_be_written_costs_no_boot(words: list[str], complaint: str) -> None:
    run = vmm("boot", "probe", *words)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"vmm: {complaint}\n")


def test_without_jinja2_the_guest_does_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("as it was")
    program = "import sys; sys.modules['jinja2'] = None; from vmm.cli import main; sys.exit(main(sys.argv[1:]))"
    run = subprocess.run(
        [sys.executable, "-c", program, "boot", "probe", "--html", page],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout) == (4, "")
    assert run.stderr == f"vmm: --html needs jinja2: {installation.extra_remedy('report')}\n"
    assert page.read_text() == "as it was"


def test_only_who_asks_for_a_page_loads_what_makes_it(tmp_path: Path) -> None:
    program = (
        "import sys; from vmm.cli import main; main(sys.argv[1:]); "
        "print(*{'jinja2', 'hashlib', 'vmm.report.origin', 'vmm.report.html', 'vmm.report.page'} & sys.modules.keys())"
    )

    def loaded(*words: str | Path) -> set[str]:
        command = [sys.executable, "-c", program, "boot", "exit", *NO_CONSOLES, *map(str, words)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
        return set(done.stdout.split())

    assert loaded() == set()
    assert loaded("--json", tmp_path / "report.json") == {"hashlib", "vmm.report.origin"}
    assert loaded("--html", tmp_path / "page.html") == {
        "hashlib", "jinja2", "vmm.report.html", "vmm.report.origin", "vmm.report.page",
    }  # fmt: skip
