"""The page of a run, from made-up reports: what it says, and that nothing in it gets out of hand."""

import pytest
from html_page import check_self_contained, read
from made_up_report import HOSTILE, ORIGIN, Report, event, item, request, text_of, with_fwctl

from vmm.report import page as report_page
from vmm.report import text
from vmm.run.outcome import Reason


def test_the_page_says_what_the_run_did(report: Report) -> None:
    text = text_of(report)
    for words in (
        "the console showed 'No bootable' until after 60 ms, exit status 0.",
        "firmware seabios: /usr/share/seabios/bios-256k.bin machine pc, 128 MiB of RAM",
        "interface QEMU's fw_cfg (SeaBIOS speaks fw_cfg)",
        "CPUs 2 asked for, 2 started, the last after 30 ms",
        "signature 3 times and used 2 of 3 items, 12 bytes in all",
        "signature 0x0 4 3 4 4 yes",
        "numa 0xd 40 1 1 8 no",
        "does not know it from here. etc/e820",
        "debugcon: 20 bytes No bootable device",
        "serial: nothing",
        "debugcon 0x402 1 2,178",
        "of all vCPUs together: io 1,234.",
        "out 0x402 debugcon 3 2.05 µs",
        "ROM or flash 0xfffc0000-0xffffffff 256 KiB",
        "Not used (asked for)",
    ):
        assert words in text


def test_nothing_of_guest_or_user_is_markup(report: Report) -> None:
    report["outcome"] |= {"message": HOSTILE, "details": HOSTILE, "exit_status": 1}
    report["firmware"] |= {"path": HOSTILE, "kind": HOSTILE, "interface_why": HOSTILE, "notes": [HOSTILE]}
    report["fw_cfg"]["items"].append(item(HOSTILE, 0x21, selects=1))
    report["fw_cfg"]["never_read"].append(HOSTILE)
    report["console_tails"]["debugcon"] = HOSTILE
    report["timeline"].append(event(0.07, "end", HOSTILE))
    report["exits"]["by_device"][0]["name"] = HOSTILE
    report["accelerator"]["why"] = HOSTILE
    html = report_page.render(report)
    check_self_contained(html)
    # Once in each of the above, and where they show twice: title, facts and picture.
    shown = read(html).text
    assert shown.count(r"""<script>alert(1)</script>"'&\x1b\u202e\udcff""") >= 13
    assert "\x1b" not in html
    html.encode("utf-8")


def test_nothing_of_an_fwctl_guest_is_markup(report: Report) -> None:
    with_fwctl(report, request(HOSTILE, operation=HOSTILE, matched=HOSTILE, error=HOSTILE))
    report["timeline"].append(event(0.07, "fwctl-request", HOSTILE, f"fwctl GET {HOSTILE}"))
    report["fwctl"]["never_asked"] = [HOSTILE]
    html = report_page.render(report)
    check_self_contained(html)
    assert read(html).text.count(r"""<script>alert(1)</script>"'&\x1b\u202e\udcff""") == 5


def test_nothing_of_guest_or_user_steers_the_terminal_that_shows_the_text(report: Report) -> None:
    report["outcome"] |= {"message": HOSTILE, "details": f"one\ntwo {HOSTILE}"}
    report["firmware"] |= {"path": HOSTILE, "interface_why": HOSTILE}
    report["fw_cfg"]["items"].append(item(HOSTILE, 0x21, selects=1))
    report["accelerator"]["why"] = HOSTILE
    shown = text.text(report)
    assert shown.replace("\n", "").isprintable()
    assert shown.count(r"\x1b\u202e\udcff") == 6
    shown = text.text(with_fwctl(report, request(HOSTILE)))
    assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize("reason", [reason.value for reason in Reason])
def test_every_end_is_explained(report: Report, reason: str) -> None:
    report["outcome"] |= {"reason": reason, "exit_status": 1, "details": "RIP 0000"}
    html = report_page.render(report)
    assert 'class="verdict"' in html
    explained = read(html).text.partition("exit status 1. ")[2]
    assert explained[0].isupper()
    assert "RIP 0000" in explained


def test_a_guest_that_reads_without_looking_for_the_signature(report: Report) -> None:
    report["fw_cfg"] |= {"probes": 0}
    assert "asked for the device's signature 0 times and used 2 of 3 items" in text_of(report)
    shown = text.text(report)
    assert "fw_cfg        2 of 3 items read, 12 bytes" in shown
    assert "never looked" not in shown


def test_counts_of_what_was_read(report: Report) -> None:
    selected = item("selected", 0x21, selects=1)
    again = item("again", 0x22, size=16, selects=4, reads=4, bytes_read=32)
    report["fw_cfg"]["items"] += [selected, again]
    shown = text.text(report)
    assert "3 of 5 items read" in shown
    assert "never read  etc/e820, selected\n" in shown
    assert "numa [8 of 40 bytes]" in shown
    assert "again (4 times) [not all of 16 bytes]" in shown


def test_the_madt_that_firmware_left_is_told(report: Report) -> None:
    report["cpus"]["madt"] = {"address": 0xF77A000, "oem": "BHYVE", "enabled": [0], "possible": 1}
    assert "2 started, the last after 30 ms; 1 in the MADT that firmware left" in text.text(report)


def test_what_secure_boot_refused_is_told_with_its_remedy(report: Report) -> None:
    kernel = "VenMedia(1428F772-B64A-441E-B8C3-9EBDD7F893C7)/kernel"
    refused = [("not-in-db", False), ("not-in-db", True), ("not-in-db", None), ("hash-in-dbx", True)]
    report["refused_images"] = [{"image": kernel, "cause": cause, "signed": signed} for cause, signed in refused]
    report["refused_images"].append(
        {"image": "PciRoot(0x0)/HD(1,GPT,5CB5)/a.efi", "cause": "certificate-in-dbx", "signed": None}
    )
    shown = " ".join(text.text(report).split())
    for words in (
        "Secure Boot refused the image of -kernel: it has no signature, and its hash is not in db; sign it with sbsign",
        "refused the image of -kernel: no certificate in db verifies its signature; sign it",
        "refused the image of -kernel: it has no signature that a certificate in db verifies; sign it",
        "refused the image of -kernel: dbx forbids it, by its hash; take a newer version",
        "refused PciRoot(0x0)/a.efi: dbx forbids the certificate that it is signed with; take",
    ):
        assert words in shown
        assert words in text_of(report)


def test_a_guest_that_does_nothing(report: Report) -> None:
    report["consoles"] = {"serial": 0, "debugcon": 0}
    report["console_tails"] = {"serial": "", "debugcon": ""}
    report["fw_cfg"] |= {"items": [item("signature", 0)], "never_read": ["signature"], "probes": 0}
    report["exits"] = {"by_reason": {}, "by_device": [], "times": [], "times_lost": 0}
    report["cpus"] |= {"started": 0, "all_started_s": None}
    report["timeline"] = []
    report["memory"]["regions"] = []
    text = text_of(report)
    assert "The guest never looked for it: it selected nothing" in text
    assert "The guest printed nothing" in text
    assert "None at all." in text
    assert "it never did." in text
    assert "vCPUs 0 of 2" in text
    assert "Time spent in vmm" not in text


def test_a_machine_with_neither_interface(report: Report) -> None:
    del report["fw_cfg"]
    text = text_of(report)
    assert "fw_cfg: what" not in text
    assert "fwctl: what" not in text


def test_fwctl_instead_of_fw_cfg(report: Report) -> None:
    asked = [
        request("hw.ncpu", value="04000000"),
        request("hw.n", matched="hw.ncpu", value="aa" * 40),
        request("no.such", matched=None, error="ENOENT"),
    ]
    text = text_of(with_fwctl(report, *asked))
    assert "read the device's signature 1 time and made 3 requests" in text
    assert "0.10 s GET hw.ncpu OK 04 00 00 00" in text
    assert f"hw.n (answered as hw.ncpu) OK {'aa ' * 32}… (40 bytes)" in text
    assert "no.such ENOENT" in text
    assert "Never asked for" in text
    assert "Only the last" not in text
    report["fwctl"]["count"] = 2000
    assert "made 2000 requests" in text_of(report)
    assert "Only the last 3 were kept." in text_of(report)


def test_fwctl_that_nobody_looked_for(report: Report) -> None:
    assert "The guest never looked for it." in text_of(with_fwctl(report, probes=0))


def test_a_thousand_items_are_all_there_and_mostly_folded(report: Report) -> None:
    names = [f"opt/item-{number:04}" for number in range(1000)]
    report["fw_cfg"]["items"] = [item(name, 0x20, selects=1) for name in names] + [item(name, 0x20) for name in names]
    report["fw_cfg"]["never_read"] = [f"{name}-never" for name in names]
    html = report_page.render(report)
    shown, folded = html.partition("<summary>960 more")[::2]
    assert shown.count('<td class="m">opt/item-') == 40
    assert all(f">{name}<" in html and f">{name}-never<" in html for name in names)
    assert folded.count("<summary>960 more") == 1
    assert len(html) < 1 << 20


def test_the_page_says_where_it_comes_from(report: Report) -> None:
    del report["origin"]
    assert "Host and images" not in text_of(report)
    report["origin"] = ORIGIN
    text = text_of(report)
    assert "vmm boot version 1.2.3 2026-01-02 03:04:05 UTC $ vmm boot seabios -append 'a <b>'" in text
    assert "host An & CPU, 2 processors, no VMX or SVM, Linux 6.1" in text
    assert f"firmware {HOSTILE[:10]}" in text
    assert f"262,144 bytes sha256 {'0f' * 32}" in text


def test_the_software_cpus_counters(report: Report) -> None:
    report["accelerator"] = {
        "name": "kvm+softcpu",
        "why": "asked for",
        "instructions": 1234567,
        "kvm_steps": 8,
        "interrupts": 5,
        "swaps": 3,
    }
    text = text_of(report)
    assert "1,234,567 instructions that the software CPU executed 8 single instructions" in text
    assert "5 interrupts delivered" in text
    assert "HLT instructions" not in text


def test_a_power_off_too_early_is_told(report: Report) -> None:
    report["outcome"] |= {"reason": "power-off", "exit_status": 1}
    assert "It should have shown what --until asked for before." in text_of(report)
