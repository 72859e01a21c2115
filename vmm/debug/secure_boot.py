"""What UEFI's Secure Boot refused to load, and why: from the table in the guest's memory in which firmware notes it.

Source: UEFI specification 2.10, 32.4.2 and 32.5.3.1 (image execution information table). An image is in it only where
Secure Boot was on and firmware did not accept it. Whatever is read is the guest's: counts and sizes are bounded, and
what makes no sense is left out.
"""

from typing import Final, Literal, NamedTuple
from uuid import UUID

from vmm.debug.efi import Read, configuration_table

_TABLE: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_MOST_READ: Final = 256
"""Records."""
_MOST: Final = 32
"""Images."""
_HEADER: Final = 8
"""EFI_IMAGE_EXECUTION_INFO: Action and InfoSize, 4 bytes each; the name follows, in UTF-16."""
_LARGEST: Final = 1 << 20
_LONGEST_NAME: Final = 2048
"""Bytes."""

Cause = Literal["not-in-db", "certificate-in-dbx", "hash-in-dbx"]

_CAUSES: Final[dict[int, Cause]] = {0: "not-in-db", 1: "certificate-in-dbx", 3: "not-in-db", 4: "hash-in-dbx"}
"""EFI_IMAGE_EXECUTION_AUTH_UNTESTED, _AUTH_SIG_FAILED, _AUTH_SIG_NOT_FOUND and _AUTH_SIG_FOUND, as edk2 uses them: the
first is what becomes of an image without a signature, and of one whose signature no certificate in db verifies
(DxeImageVerificationHandler in SecurityPkg/Library/DxeImageVerificationLib)."""


class Refusal(NamedTuple):
    """An image that firmware did not load.

    Attributes:
        image: its device path, as firmware writes it.
        cause: why.
    """

    image: str
    cause: Cause


def refusals(read: Read, ram_end: int) -> list[Refusal]:
    """Return each refused image once, in the order of the first time; empty where there is no table.

    Args:
        read: physical memory.
        ram_end: where RAM below 4 GiB ends.
    """
    found: dict[Refusal, None] = {}
    try:
        table = configuration_table(read, ram_end, _TABLE)
        if table is None:
            return []
        at = table.gpa + table.pointer
        for _ in range(min(table.address(table.gpa, read), _MOST_READ)):
            header = read(at, _HEADER)
            action, size = int.from_bytes(header[:4], "little"), int.from_bytes(header[4:], "little")
            if not _HEADER <= size <= _LARGEST:
                break
            name = read(at + _HEADER, min(size - _HEADER, _LONGEST_NAME)).decode("utf-16-le", "replace")
            if action in _CAUSES and len(found) < _MOST:
                found[Refusal(name.partition("\0")[0], _CAUSES[action])] = None
            at += size
    except ValueError:
        pass  # not all of it is there
    return list(found)
