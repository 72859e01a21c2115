"""What a run found out, asked of the machine while it still exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from vmm.firmware.images import FirmwareKind
from vmm.legible import legible
from vmm.run.console import strip_escapes

if TYPE_CHECKING:
    from typing import Literal

    from vmm.devices.fw_cfg import FwCfg
    from vmm.devices.fwctl import Fwctl
    from vmm.devices.virtio.block import VirtioBlk
    from vmm.machine import Machine
    from vmm.report.schema import (
        AcceleratorReport,
        CpusReport,
        DiskReport,
        EventReport,
        ExitsReport,
        FwCfgReport,
        FwctlReport,
        ItemReport,
        MadtReport,
        OriginReport,
        Report,
        RequestReport,
        TimesReport,
        VirtualTimeReport,
    )
    from vmm.run.console import Stream
    from vmm.run.outcome import Outcome
    from vmm.run.timeline import TimelineEvent
    from vmm.run.virtual_time import VirtualTime

SCHEMA: Final = "vmm-report/1"
"""Names what `vmm.report.schema` describes; changes when a key goes or means something else."""

TAIL_LINES = 40
TAIL_BYTES = 4096
"""How much of each console's end the report has."""

_PLATFORM_KEY = "PK\0".encode("utf-16-le")
"""The name of a variable without which Secure Boot is off (UEFI 2.10, 32.3)."""


def collect(machine: Machine, outcome: Outcome, origin: OriginReport | None = None) -> Report:
    """Return the report of a run that has ended; the machine must still be open.

    Args:
        machine: what ran.
        outcome: how that ended.
        origin: see `vmm.report.origin`; None: left out, as for the text, which does without.
    """
    config = machine.config
    images = config.firmware
    report: Report = {
        "schema": SCHEMA,
        "outcome": {
            "reason": outcome.reason.value,
            "exit_status": int(outcome.exit_status),
            "elapsed_s": round(outcome.elapsed_s, 6),
            "message": outcome.message,
            "details": outcome.details,
        },
        "firmware": {
            "path": str(images.path),
            "kind": images.kind.value,
            "interface": cast("Literal['qemu', 'bhyve']", machine.interface.value),
            "interface_why": machine.interface_choice.why,
            "variables": None if images.variables is None else str(images.variables.path),
            "variables_persist": images.variables is not None and images.variables.persist,
            "notes": list(images.notes),
        },
        "machine": cast("Literal['q35', 'pc', 'bhyve']", config.machine_type.value),
        "resets": {
            "count": machine.reset_count,
            "latest": [
                {
                    "t_s": round(reset.t_s, 6),
                    "kind": reset.kind.value,
                    "cause": reset.cause,
                    "details": reset.details,
                }
                for reset in machine.resets
            ],
        },
        "cpus": _cpus(machine),
        "memory": {
            "size": config.memory,
            "regions": [
                {
                    "gpa": region.gpa,
                    "size": region.size,
                    "kind": cast("Literal['ram', 'rom']", region.kind),
                    "read_only": region.read_only,
                }
                for region in machine.memory.regions()
            ],
        },
        "consoles": {stream.name: stream.total for stream in (machine.serial, machine.debugcon)},
        "console_tails": {stream.name: _tail(stream) for stream in (machine.serial, machine.debugcon)},
        "exits": _exits(machine),
        "accelerator": cast("AcceleratorReport", machine.accelerator_report()),
        "sandbox": {
            "kind": cast("Literal['off', 'threads', 'whole']", machine.sandbox.kind.value),
            "landlock": machine.sandbox.landlock,
            "missing": machine.sandbox.missing,
        },
        "timeline": [_event(event) for event in machine.timeline],
    }
    if machine.virtual_time is not None:
        report["virtual_time"] = _virtual_time(machine.virtual_time, report)
        if (replayed := machine.virtual_time.replayed) is not None:
            report["replay"] = {"inputs": replayed.recorded, "given": replayed.given, "same": replayed.same}
    if outcome.evidence is not None:
        from vmm.report.why import why

        report["why"] = why(outcome.evidence)
    if origin is not None:
        report["origin"] = origin
    if config.max_memory is not None and (room := machine.memory.places.hotplug):
        slots = config.memory_slots
        report["memory"]["room"] = {
            "gpa": room.start,
            "size": len(room),
            "max_memory": config.max_memory,
            "slots": slots,
        }
    if config.vmgenid is not None:
        from uuid import UUID

        report["vmgenid"] = {"guid": str(UUID(bytes_le=config.vmgenid)), "address": machine.vmgenid_address}
    if config.vmcoreinfo:
        note = machine.vmcoreinfo
        report["vmcoreinfo"] = (
            None if note is None else {"guest_format": note.guest_format, "size": note.size, "address": note.address}
        )
    if machine.platform.disks:
        report["disks"] = [_disk(disk) for disk in machine.platform.disks]
    if machine.started_ns and _has_keys(machine):
        from vmm.report.refused import refused_images  # few machines have Secure Boot on

        refused = refused_images(machine)
        if refused:
            report["refused_images"] = refused
    if machine.fwctl is not None:
        report["fwctl"] = _fwctl(machine, machine.fwctl)
    elif machine.fw_cfg is not None:
        report["fw_cfg"] = _fw_cfg(machine.fw_cfg)
    return report


def _disk(disk: VirtioBlk) -> DiskReport:
    import os

    counters = disk.counters()
    errno = counters.pop("last_error")
    told = {
        "path": str(disk.drive.path),
        "slot": disk.slot,
        "size": disk.size,
        "read_only": disk.drive.read_only,
        "snapshot": disk.drive.snapshot,
        **counters,
        "last_error": os.strerror(errno).lower() if counters["errors"] else None,
    }
    return cast("DiskReport", told)


def _virtual_time(time: VirtualTime, report: Report) -> VirtualTimeReport:
    from vmm.report.phases import phases

    found = phases(report)
    starts = [phase.instructions or 0 for phase in found]
    trace_hash, events = time.trace()
    return {
        "time_s": round(time.seconds, 9),
        "instructions": time.instructions,
        "phases": [
            {"name": phase.name, "instructions": following - start}
            for phase, start, following in zip(found, starts, [*starts[1:], time.instructions], strict=False)
        ],
        "events": events,
        "trace_hash": f"{trace_hash:016x}",
        "inputs": time.inputs,
    }


def _event(event: TimelineEvent) -> EventReport:
    told: EventReport = {
        "t_s": round(event.t_s, 6),
        "kind": event.kind.value,
        "subject": event.subject,
        "event": event.event,
    }
    if event.instructions is not None:
        told["instructions"] = event.instructions
    return told


def _cpus(machine: Machine) -> CpusReport:
    times = machine.started_s()
    started = sorted(seconds for index in machine.present_cpus if (seconds := times[index]) is not None)
    return {
        "requested": machine.config.cpus,
        "max": machine.config.max_cpus,
        "plugged": [index for index in machine.present_cpus if index >= machine.config.cpus],
        "started": len(started),
        "all_started_s": round(started[-1], 6) if len(started) == len(machine.present_cpus) else None,
        "madt": _madt(machine),
    }


def _madt(machine: Machine) -> MadtReport | None:
    """Return what firmware left, as it is in RAM now; guests of ours leave none, and need not wait for a search."""
    if machine.config.firmware.kind is FirmwareKind.PROBE or not machine.started_ns:
        return None
    from vmm.tables.in_ram import find_tables, processors

    table = find_tables(machine.memory).get("APIC")
    if table is None:
        return None
    listed = list(processors(table.data))
    return {
        "address": table.address,
        "oem": legible(table.oem),
        "enabled": [processor.apic_id for processor in listed if processor.enabled],
        "possible": len(listed),
    }


def _has_keys(machine: Machine) -> bool:
    """Whether Secure Boot may be on."""
    flash = machine.platform.flash
    return flash is not None and _PLATFORM_KEY in flash.contents()


def _tail(stream: Stream) -> str:
    """Return the last lines that a console showed."""
    data = strip_escapes(stream.since(max(0, stream.total - TAIL_BYTES)))
    return "\n".join(data.decode("utf-8", "replace").rstrip().splitlines()[-TAIL_LINES:])


def _fw_cfg(fw_cfg: FwCfg) -> FwCfgReport:
    items = fw_cfg.items()
    return {
        "items": [cast("ItemReport", item._asdict()) for item in items],
        "never_read": [item.name for item in items if not item.selects],
        "probes": fw_cfg.probes,
    }


def _fwctl(machine: Machine, fwctl: Fwctl) -> FwctlReport:
    return {
        "requests": [cast("RequestReport", request.as_dict(machine.started_ns)) for request in fwctl.requests],
        "count": fwctl.request_count,
        "probes": fwctl.probes,
        "oids": list(fwctl.oids),
        "never_asked": fwctl.never_asked,
    }


def _exits(machine: Machine) -> ExitsReport:
    ports = [*machine.ports.ranges(), *machine.mmio.ranges()]
    return {
        "by_reason": machine.exit_counts(),
        "by_device": [
            {"name": area.name, "first": area.first, "last": area.last, "reads": area.reads, "writes": area.writes}
            for area in sorted(ports, key=lambda area: -(area.reads + area.writes))
            if area.reads or area.writes
        ],
        "times": [cast("TimesReport", times.summary()) for times in machine.exit_times()],
        "times_lost": machine.exit_times_lost(),
    }
