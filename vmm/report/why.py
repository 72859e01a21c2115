"""Why a run ended, as a report has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from typing import Literal

    from vmm.report.schema import (
        AccessReport,
        ExceptionReport,
        InstructionReport,
        VcpuReport,
        WherePlace,
        WhyReport,
    )
    from vmm.run.evidence import Evidence, GuestException, Place, VcpuEvidence


def why(evidence: Evidence) -> WhyReport:
    """The evidence that a run's end has."""
    return {
        "vcpus": [_vcpu(vcpu) for vcpu in evidence.vcpus],
        "accesses": [cast("AccessReport", access._asdict()) for access in evidence.accesses],
        "said": evidence.said,
    }


def _vcpu(vcpu: VcpuEvidence) -> VcpuReport:
    return {
        "vcpu": vcpu.vcpu,
        "started": vcpu.started,
        "halted": vcpu.halted,
        "mode": vcpu.mode,
        "ring": vcpu.ring,
        "rip": vcpu.rip,
        "place": _place(vcpu.place),
        "registers": dict(vcpu.registers),
        "code": [cast("InstructionReport", instruction._asdict()) for instruction in vcpu.code],
        "verdict": vcpu.verdict,
        "stack": [cast("WherePlace", place._asdict()) for place in vcpu.stack],
        "walks": [
            {
                "register": cast("Literal['RIP', 'CR2']", register),
                "address": walk.linear,
                "steps": [{"level": step.level, "gpa": step.gpa, "entry": step.entry} for step in walk.steps],
            }
            for register, walk in vcpu.walks
        ],
        "exceptions": [_exception(exception) for exception in vcpu.exceptions],
    }


def _exception(exception: GuestException) -> ExceptionReport:
    return {
        "vector": exception.vector,
        "name": exception.name,
        "error_code": exception.error_code,
        "rip": exception.rip,
        "cr2": exception.cr2,
        "place": _place(exception.place),
    }


def _place(place: Place | None) -> WherePlace | None:
    return None if place is None else cast("WherePlace", place._asdict())
