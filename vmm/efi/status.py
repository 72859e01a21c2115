"""EFI_STATUS: names, and the exit statuses that stand for them (UEFI 2.10, appendix D)."""

from typing import Final

_ERROR_BIT: Final = 1 << 63

_ERRORS: Final = """
LOAD_ERROR INVALID_PARAMETER UNSUPPORTED BAD_BUFFER_SIZE BUFFER_TOO_SMALL NOT_READY DEVICE_ERROR WRITE_PROTECTED
OUT_OF_RESOURCES VOLUME_CORRUPTED VOLUME_FULL NO_MEDIA MEDIA_CHANGED NOT_FOUND ACCESS_DENIED NO_RESPONSE NO_MAPPING
TIMEOUT NOT_STARTED ALREADY_STARTED ABORTED ICMP_ERROR TFTP_ERROR PROTOCOL_ERROR INCOMPATIBLE_VERSION SECURITY_VIOLATION
CRC_ERROR END_OF_MEDIA - - END_OF_FILE INVALID_LANGUAGE COMPROMISED_DATA IP_ADDRESS_CONFLICT HTTP_ERROR
"""
"""From 1 on; 29 and 30 are nobody's."""
_WARNINGS: Final = "UNKNOWN_GLYPH DELETE_FAILURE WRITE_FAILURE BUFFER_TOO_SMALL STALE_DATA FILE_SYSTEM RESET_REQUIRED"

SUCCESS: Final = 0
WARNING_BASE: Final = 32
ERROR_BASE: Final = 64
OTHER: Final = 127
"""Exit statuses: of warnings and of errors, to which their number is added; of what has none of those numbers."""


def name(status: int) -> str:
    """Return what UEFI calls a status, and its value."""
    if status == SUCCESS:
        return "EFI_SUCCESS"
    number = status & ~_ERROR_BIT
    names, prefix = (_ERRORS, "EFI_") if status & _ERROR_BIT else (_WARNINGS, "EFI_WARN_")
    known = dict(enumerate(names.split(), 1)).get(number, "-")
    return f"{status:#x}" if known == "-" else f"{prefix}{known} ({status:#x})"


def exit_status(status: int) -> int:
    """Return the exit status of a process that stands for a status: 1 to 4 and from 128 on mean something else."""
    number = status & ~_ERROR_BIT
    if status & _ERROR_BIT:
        return ERROR_BASE + number if 0 < number < OTHER - ERROR_BASE else OTHER
    return SUCCESS if not number else WARNING_BASE + number if number < ERROR_BASE - WARNING_BASE else OTHER
