"""Where a report comes from: what ran, on what, begun with which files."""

from __future__ import annotations

from typing import Literal, TypedDict


class ImageReport(TypedDict):
    """A file that the guest began with."""

    role: Literal["firmware", "variables", "kernel"]
    path: str
    size: int
    sha256: str
    """Of the whole file as it was read; where that is an ELF file, of the ROM that was made of it."""


class HostReport(TypedDict):
    """What the run ran on."""

    cpu: str
    cpus: int | None
    virtualization: Literal["vmx", "svm"] | None
    kernel: str


class OriginReport(TypedDict):
    """Where a report comes from."""

    vmm: str
    """The version."""
    date: str
    """When the report was made: UTC, as in ISO 8601."""
    command: str | None
    """For a shell; null: no command line began the run."""
    host: HostReport
    images: list[ImageReport]
