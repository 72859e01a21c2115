"""A report as the text that a person reads."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vmm.efi.paths import KERNEL_IMAGE
from vmm.legible import counted, legible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.report.schema import (
        AcceleratorReport,
        CpusReport,
        DiskReport,
        ExitsReport,
        FwCfgReport,
        FwctlReport,
        ItemReport,
        ProfileReport,
        RefusedImageReport,
        Report,
        ResetsReport,
        VirtualTimeReport,
    )

INTERFACE_NAMES = {"qemu": "QEMU's fw_cfg", "bhyve": "bhyve's fwctl"}

SHOWN_PORTS = 5
"""How many of the busiest ports the text names."""

SHOWN_RESETS = 5
"""How many of the resets, the latest ones, the text names."""

SHOWN_REQUESTS = 16
SHOWN_VALUE = 16
"""Requests of fwctl, and bytes of a value, that the text names."""

PROFILE_SHOWN = 4
"""Modules of a phase that the text names."""

WIDTH = 100

_SIGN = "sign it with sbsign, with a key whose certificate vmm vars enroll has put there"
_FORBIDDEN = "take a newer version of it, or a VARS file whose dbx does not say so"
_NOT_IN_DB = {
    None: "it has no signature that a certificate in db verifies",
    False: "it has no signature, and its hash is not in db",
    True: "no certificate in db verifies its signature",
}
_IN_DBX = {
    "certificate-in-dbx": "dbx forbids the certificate that it is signed with",
    "hash-in-dbx": "dbx forbids it, by its hash",
}

SILENT = (
    "the guest printed nothing, on the serial port or on debugcon (port 0x402); RELEASE builds of firmware often "
    "have no log"
)


def text(report: Report, width: int = WIDTH) -> str:
    """Return the report for a person: about ten lines of so many columns."""
    import textwrap  # 2 ms that --quiet need not spend

    lines: list[str] = []
    for label, value in rows(report):
        body = textwrap.wrap(value, max(width - 16, 20), break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"  {label if number == 0 else '':12}  {part}" for number, part in enumerate(body)]
    outcome = report["outcome"]
    head = f"vmm: {outcome['message']} ({seconds(outcome['elapsed_s'])})"
    details = textwrap.indent(outcome["details"].rstrip(), "  ")
    return legible("\n".join(part for part in (head, details, *lines) if part), keep="\n")


def rows(report: Report) -> Iterator[tuple[str, str]]:
    """Return the lines of the text: what each is about, and what there is to say."""
    firmware, cpus = report["firmware"], report["cpus"]
    yield "firmware", "none" if firmware["kind"] == "none" else f"{firmware['kind']}: {firmware['path']}"
    if firmware["variables"] is not None:
        kept = "written back" if firmware["variables_persist"] else "a private copy, discarded"
        yield "variables", f"{firmware['variables']} ({kept})"
    memory = report["memory"]
    more = f", room for {size(memory['room']['max_memory'])}" if "room" in memory else ""
    yield "machine", f"{report['machine']}, {size(memory['size'])} of RAM{more}"
    yield "interface", f"{INTERFACE_NAMES[firmware['interface']]} ({firmware['interface_why']})"
    if report["resets"]["count"]:
        yield "resets", _reset_words(report["resets"])
    yield "CPUs", _cpu_words(cpus)
    for refused in report.get("refused_images", ()):
        yield "Secure Boot", _refusal_words(refused)
    if "fw_cfg" in report:
        yield from _fw_cfg_rows(report["fw_cfg"])
    if "fwctl" in report:
        yield from _fwctl_rows(report["fwctl"])
    if "vmgenid" in report:
        address = report["vmgenid"]["address"]
        place = "no firmware has placed it" if address is None else f"at GPA {address:#x}"
        yield "vmgenid", f"{report['vmgenid']['guid']}, {place}"
    if "vmcoreinfo" in report:
        note = report["vmcoreinfo"]
        words = "the guest has written none"
        if note is not None:
            words = f"ELF note of {size(note['size'])} at GPA {note['address']:#x}, format {note['guest_format']}"
        yield "vmcoreinfo", words
    for disk in report.get("disks", ()):
        yield "disk", _disk_words(disk)
    yield "exits", _exit_words(report["exits"])
    if "profile" in report:
        yield from _profile_rows(report["profile"])
    if "virtual_time" in report:
        yield "virtual time", _virtual_words(report["virtual_time"])
    yield "host", _host_words(report["accelerator"])
    if not any(report["consoles"].values()):
        yield "consoles", SILENT


def _refusal_words(refused: RefusedImageReport) -> str:
    import re  # few reports have one

    # Which partition it is, a reader knows.
    where = re.sub(r"/HD\([^)]*\)", "", refused["image"])
    what = "the image of -kernel" if where == KERNEL_IMAGE else where
    if refused["cause"] in _IN_DBX:
        return f"refused {what}: {_IN_DBX[refused['cause']]}; {_FORBIDDEN}"
    return f"refused {what}: {_NOT_IN_DB[refused['signed']]}; {_SIGN}"


def _reset_words(resets: ResetsReport) -> str:
    latest = resets["latest"][-SHOWN_RESETS:]
    words = "; ".join(f"{reset['cause']} at {seconds(reset['t_s'])}" for reset in latest)
    return f"{resets['count']}: {'… ' if resets['count'] > len(latest) else ''}{words}"


def _cpu_words(cpus: CpusReport) -> str:
    words = f"{cpus['requested']} asked for, "
    if cpus["plugged"]:
        words += f"{len(cpus['plugged'])} plugged in, "
    words += f"{cpus['started']} started"
    if cpus["all_started_s"] is not None and cpus["started"] > 1:
        words += f", the last after {seconds(cpus['all_started_s'])}"
    if cpus["max"] != cpus["requested"]:
        words += f"; room for {cpus['max']}"
    if cpus["madt"] is not None:
        words += f"; {len(cpus['madt']['enabled'])} in the MADT that firmware left"
    return words


def _fw_cfg_rows(fw_cfg: FwCfgReport) -> Iterator[tuple[str, str]]:
    # Who selects an item and leaves it at that knows nothing of it, but that an empty one is empty.
    read = [
        item
        for item in fw_cfg["items"]
        if item["bytes_read"] or item["writes"] or (item["selects"] and not item["size"])
    ]
    unread = [item["name"] for item in fw_cfg["items"] if item not in read]
    if not read:
        yield "fw_cfg", "the firmware never looked for it"
        return
    total = sum(item["bytes_read"] for item in read)
    yield "fw_cfg", f"{len(read)} of {len(fw_cfg['items'])} items read, {size(total)}"
    yield "  read", ", ".join(_item_words(item) for item in read)
    if unread:
        yield "  never read", ", ".join(unread)


def _fwctl_rows(fwctl: FwctlReport) -> Iterator[tuple[str, str]]:
    if not fwctl["probes"] and not fwctl["count"]:
        yield "fwctl", "the firmware never looked for it"
        return
    yield "fwctl", f"{counted(fwctl['count'], 'request')}; its signature was read {fwctl['probes']}x"
    for request in fwctl["requests"][:SHOWN_REQUESTS]:
        value = bytes.fromhex(request["value"])
        shown = f" = {value[:SHOWN_VALUE].hex(' ')}{' …' if len(value) > SHOWN_VALUE else ''}" if value else ""
        yield "  request", f"{request['operation']} {request['oid']}: {request['error']}{shown}"
    if fwctl["count"] > SHOWN_REQUESTS:
        yield "  request", f"and {fwctl['count'] - SHOWN_REQUESTS} more"
    if fwctl["never_asked"]:
        yield "  never asked", ", ".join(fwctl["never_asked"])


def _disk_words(disk: DiskReport) -> str:
    read, written = size(disk["bytes_read"]), size(disk["bytes_written"])
    words = f"{disk['path']}, {size(disk['size'])}: {counted(disk['reads'], 'read')} of {read}"
    if disk["read_only"]:
        words += "; the guest cannot write"
    else:
        words += f", {counted(disk['writes'], 'write')} of {written}, {_flushes(disk['flushes'])}"
        words += "; what it wrote is gone (snapshot=on)" if disk["snapshot"] and disk["writes"] else ""
    if disk["errors"]:
        words += f"; {counted(disk['errors'], 'request')} failed, the last with: {disk['last_error']}"
    return words


def _flushes(count: int) -> str:
    return "1 flush" if count == 1 else f"{count} flushes"


def _item_words(item: ItemReport) -> str:
    words = item["name"]
    if item["writes"]:
        words += f" (written {counted(item['writes'], 'time')})"
    elif item["selects"] > 1:
        words += f" ({item['selects']} times)"
    if item["bytes_read"] and not item["read_to_end"]:
        # Of what was read in several goes, the sum says nothing of how far that was.
        part = item["bytes_read"] if item["selects"] == 1 else "not all"
        words += f" [{part} of {counted(item['size'], 'byte')}]"
    return words


def _exit_words(exits: ExitsReport) -> str:
    reasons = ", ".join(
        f"{name} {count:,}" for name, count in sorted(exits["by_reason"].items(), key=lambda pair: -pair[1])
    )
    busiest = exits["by_device"][:SHOWN_PORTS]
    devices = ", ".join(f"{area['name']} {area['reads'] + area['writes']:,}" for area in busiest)
    words = f"{reasons or 'none'}{f'; accesses: {devices}' if devices else ''}"
    return words + (f"; {exits['times_lost']:,} too many for the table of times" if exits["times_lost"] else "")


def _profile_rows(profile: ProfileReport) -> Iterator[tuple[str, str]]:
    if not profile["samples"]:
        yield "profile", "no vCPU was seen executing"
        return
    for phase in profile["phases"]:
        modules: Counter[str] = Counter()
        for stack in profile["stacks"]:
            if stack["phase"] == phase["name"]:
                modules[stack["module"]] += stack["samples"]
        shares = (
            f"{name} {_percent(samples, phase['samples'])}" for name, samples in modules.most_common(PROFILE_SHOWN)
        )
        words = [
            seconds(phase["seconds"]),
            f"{phase['accesses']:,} accesses",
            f"{size(phase['fw_cfg_bytes'])} of fw_cfg",
        ]
        if phase["instructions"] is not None:
            words.insert(1, f"{phase['instructions'] / 1e6:,.0f} M instructions")
        yield phase["name"], f"{', '.join(words)}: {', '.join(shares) or 'nothing was executed'}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%"


def _virtual_words(told: VirtualTimeReport) -> str:
    phases = ", ".join(f"{phase['name']} {phase['instructions']:,}" for phase in told["phases"])
    counted = f"{told['instructions']:,} instructions{phases and f' ({phases})'}"
    return f"{seconds(told['time_s'])}: {counted}, {told['events']:,} events with the hash {told['trace_hash']}"


def _host_words(accelerator: AcceleratorReport) -> str:
    if accelerator["name"] == "kvm":
        return f"plain KVM ({accelerator['why']})" if accelerator["why"] else "plain KVM"
    alone = accelerator["name"] == "softcpu"
    words = f"software CPU {'without' if alone else 'beside'} KVM ({accelerator['why']})"
    if accelerator.get("instructions") is not None:
        steps = "accesses to its chips" if alone else "steps in KVM"
        words += f": {accelerator['instructions']:,} instructions there, {accelerator['kvm_steps']:,} {steps}"
    return words


def seconds(value: float) -> str:
    """Return a duration for people: 12 ms, 1.32 s, 75 s."""
    if value < 0.1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def size(value: int) -> str:
    """Return a number of bytes for people: 512 MiB, 20 bytes."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit:
            return f"{value // unit} {name}" if value % unit == 0 else f"{value / unit:.1f} {name}"
    return f"{value} byte{'' if value == 1 else 's'}"
