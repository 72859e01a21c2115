"""The conformance guests: the same image, on QEMU and on our machine."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN

from vmm.firmware import guests
from vmm.run.outcome import Reason

RESULT = re.compile(r"(?P<not>not )?ok (?P<number>\d+) - (?P<name>[^#\n]+?)(?: # SKIP (?P<why>.*))?")


def results(text: str) -> list[tuple[str, str]]:
    """Each case of a TAP stream, with "ok", "not ok" or "skip"; a stream that is not whole is an error."""
    lines = text.splitlines()
    assert lines[0] == "TAP version 13"
    cases = [match for line in lines if (match := RESULT.fullmatch(line))]
    assert [int(case["number"]) for case in cases] == list(range(1, len(cases) + 1))
    assert f"1..{len(cases)}" in lines, text
    return [(case["name"], "skip" if case["why"] else "not ok" if case["not"] else "ok") for case in cases]


def failures(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("not ok", "#   seen", "#   byte", "Bail out"))]


@pytest.fixture
def with_everything(tmp_path: Path) -> list[str]:
    """The options without which some cases are skipped."""
    pattern = tmp_path / "pattern"
    pattern.write_bytes(bytes(range(256)))
    return ["-device", "vmcoreinfo", "-fw_cfg", f"name=opt/vmm/pattern,file={pattern}"]


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_fw_cfg_on_qemu(qemu: Callable[..., str], with_everything: list[str], machine: str) -> None:
    text = qemu(guests.path("conformance-fw-cfg"), *with_everything, machine=machine)
    assert not failures(text)
    assert {result for _name, result in results(text)} == {"ok"}


@pytest.mark.needs_kvm
def test_fw_cfg_on_qemu_with_kvm(qemu: Callable[..., str], with_everything: list[str]) -> None:
    text = qemu(guests.path("conformance-fw-cfg"), *with_everything, accelerator="kvm")
    assert not failures(text)
    assert {result for _name, result in results(text)} == {"ok"}
    assert "refused as a whole" not in text


def test_fw_cfg_on_qemu_without_dma(qemu: Callable[..., str]) -> None:
    text = qemu(guests.path("conformance-fw-cfg"), "-global", "fw_cfg.dma_enabled=off")
    assert not failures(text)
    assert [name for name, result in results(text) if result == "skip"] == ["DMA"]


def test_fwctl_where_fw_cfg_answers_fails(qemu: Callable[..., str]) -> None:
    assert "Bail out! fwctl does not answer" in qemu(guests.path("conformance-fwctl"), status=1)


@pytest.mark.hw
@pytest.mark.needs_kvm
@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_fw_cfg_on_ours(ours: Callable[..., str], machine: str, coalesced: bool) -> None:
    text = ours(
        "conformance-fw-cfg", machine=machine, coalesced=coalesced, fw_cfg={"opt/vmm/pattern": bytes(range(256))}
    )
    assert not failures(text)
    assert "refused as a whole" not in text


@pytest.mark.needs_kvm
def test_ours_runs_the_cases_that_qemu_runs(qemu: Callable[..., str], ours: Callable[..., str]) -> None:
    assert results(ours("conformance-fw-cfg")) == results(qemu(guests.path("conformance-fw-cfg")))


@pytest.mark.hw
@pytest.mark.needs_kvm
@pytest.mark.parametrize("extensions", [False, True])
@pytest.mark.parametrize("machine_type", ["q35", "bhyve"])
def test_fwctl_on_ours(vmm_machine: Callable[..., Any], machine_type: str, extensions: bool) -> None:
    options = {"machine": machine_type, "fwcfg": "bhyve", "fwctl_extensions": extensions}
    machine = vmm_machine(str(guests.path("conformance-fwctl")), accel=PLAIN, cpus=3, **options)
    outcome = machine.run(deadline=60)
    text = machine.debugcon.text()
    assert not failures(text)
    assert outcome.reason is Reason.POWER_OFF
    assert {result for _name, result in results(text)} == {"ok"}
    assert "# hw.ncpu is 3" in text.splitlines()
    assert (("ECHO: its payload", "ok") in results(text)) is extensions
