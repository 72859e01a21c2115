"""A small encoder for ACPI Machine Language.

Each function gives the bytes of one term; terms nest as they do in ASL::

    device("COM1", name("_HID", eisa_id("PNP0501")), name("_UID", integer(1)))

Encodings are those of the ACPI specification 6.5, chapter 20, and of chapter
6.4 for resource descriptors (see ``resources``). Only what the tables of this
package need is here. Mistakes of the caller raise ValueError.
"""

from __future__ import annotations

import re

_NAME_SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
_ZERO, _ONE, _NAME, _SCOPE, _BUFFER, _PACKAGE, _METHOD = 0x00, 0x01, 0x08, 0x10, 0x11, 0x12, 0x14
_DUAL_NAME, _MULTI_NAME, _EXTENDED = 0x2E, 0x2F, 0x5B
_STORE, _ADD, _AND, _OR, _INDEX, _CREATE_DWORD = 0x70, 0x72, 0x7B, 0x7D, 0x88, 0x8A
_NOTIFY, _NOT, _EQUAL, _LESS, _IF, _ELSE, _WHILE, _RETURN, _BREAK = (
    *(0x86, 0x92, 0x93, 0x95, 0xA0, 0xA1, 0xA2, 0xA4, 0xA5),
)
_MUTEX, _ACQUIRE, _RELEASE = 0x01, 0x23, 0x27
_DEVICE = 0x82
_SYSTEM_IO = 0x01
_OPERATION_REGION, _FIELD, _PCI_CONFIG, _RESERVED_FIELD = 0x80, 0x81, 0x02, 0x00
BYTE_ACCESS, DWORD_ACCESS, WRITE_AS_ZEROS = 0x01, 0x03, 0x40
"""Flags of `fields`; without the last, what is not written is read before, and preserved."""


def path(text: str) -> bytes:
    r"""Encode a name such as ``\_SB.PCI0`` or ``_HID``; segments are padded with ``_``."""
    rest = text.lstrip("\\^")
    prefix = text[: len(text) - len(rest)].encode("ascii")
    segments = rest.split(".") if rest else []
    for segment in segments:
        if not _NAME_SEGMENT.fullmatch(segment):
            raise ValueError(f"{segment!r} in {text!r} is not an ACPI name segment")
    encoded = b"".join(segment.ljust(4, "_").encode("ascii") for segment in segments)
    if not segments:
        return prefix + bytes([_ZERO])
    if len(segments) == 1:
        return prefix + encoded
    if len(segments) == 2:
        return prefix + bytes([_DUAL_NAME]) + encoded
    return prefix + bytes([_MULTI_NAME, len(segments)]) + encoded


def integer(value: int) -> bytes:
    """Encode an integer of up to 64 bits in its shortest form."""
    if value in {0, 1}:
        return bytes([_ONE if value else _ZERO])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 <= value < 1 << (8 * size):
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} is not a 64-bit unsigned integer")


def dword(value: int) -> bytes:
    """Encode an integer as DWordConst whatever its value, for a field to be patched."""
    return b"\x0c" + value.to_bytes(4, "little")


def string(text: str) -> bytes:
    """Encode an ASCII string."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def package_length(size: int) -> bytes:
    """Encode PkgLength for ``size`` bytes that follow it; it counts itself as well."""
    if size + 1 < 1 << 6:
        return bytes([size + 1])
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | (total & 0xF)]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"a package of {size} bytes is above the 256 MiB that PkgLength can say")


def _sized(opcode: bytes, body: bytes) -> bytes:
    return opcode + package_length(len(body)) + body


def buffer(data: bytes) -> bytes:
    """Encode a buffer with its content."""
    return _sized(bytes([_BUFFER]), integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """Encode a package of at most 255 elements."""
    return _sized(bytes([_PACKAGE]), bytes([len(elements)]) + b"".join(elements))


def name(target: str, value: bytes) -> bytes:
    """Encode ``Name (target, value)``."""
    return bytes([_NAME]) + path(target) + value


def scope(target: str, *body: bytes) -> bytes:
    """Encode ``Scope (target) {body}``."""
    return _sized(bytes([_SCOPE]), path(target) + b"".join(body))


def device(target: str, *body: bytes) -> bytes:
    """Encode ``Device (target) {body}``."""
    return _sized(bytes([_EXTENDED, _DEVICE]), path(target) + b"".join(body))


def method(target: str, arguments: int, *body: bytes, serialized: bool = False) -> bytes:
    """Encode ``Method (target, arguments) {body}``."""
    if not 0 <= arguments <= 7:
        raise ValueError(f"a method has 0 to 7 arguments, not {arguments}")
    flags = arguments | (0x08 if serialized else 0)
    return _sized(bytes([_METHOD]), path(target) + bytes([flags]) + b"".join(body))


def argument(index: int) -> bytes:
    """Encode ``Arg0`` to ``Arg6``."""
    if not 0 <= index <= 6:
        raise ValueError(f"there is no Arg{index}")
    return bytes([0x68 + index])


def local(index: int) -> bytes:
    """Encode ``Local0`` to ``Local7``."""
    if not 0 <= index <= 7:
        raise ValueError(f"there is no Local{index}")
    return bytes([0x60 + index])


def returns(value: bytes) -> bytes:
    """Encode ``Return (value)``."""
    return bytes([_RETURN]) + value


def if_(condition: bytes, *body: bytes) -> bytes:
    """Encode ``If (condition) {body}``."""
    return _sized(bytes([_IF]), condition + b"".join(body))


def else_(*body: bytes) -> bytes:
    """Encode ``Else {body}``, behind an ``If``."""
    return _sized(bytes([_ELSE]), b"".join(body))


def while_(condition: bytes, *body: bytes) -> bytes:
    """Encode ``While (condition) {body}``."""
    return _sized(bytes([_WHILE]), condition + b"".join(body))


def break_() -> bytes:
    """Encode ``Break``."""
    return bytes([_BREAK])


def less(left: bytes, right: bytes) -> bytes:
    """Encode ``LLess (left, right)``."""
    return bytes([_LESS]) + left + right


def call(target: str, *arguments: bytes) -> bytes:
    """Encode ``target (arguments)``; there are to be as many as the method takes."""
    return path(target) + b"".join(arguments)


def mutex(target: str) -> bytes:
    """Encode ``Mutex (target, 0)``."""
    return bytes([_EXTENDED, _MUTEX]) + path(target) + bytes([0])


def acquire(target: str) -> bytes:
    """Encode ``Acquire (target, 0xffff)``, which waits for ever."""
    return bytes([_EXTENDED, _ACQUIRE]) + path(target) + b"\xff\xff"


def release(target: str) -> bytes:
    """Encode ``Release (target)``."""
    return bytes([_EXTENDED, _RELEASE]) + path(target)


def equal(left: bytes, right: bytes) -> bytes:
    """Encode ``LEqual (left, right)``."""
    return bytes([_EQUAL]) + left + right


def not_equal(left: bytes, right: bytes) -> bytes:
    """Encode ``LNotEqual (left, right)``, which is LNot of LEqual."""
    return bytes([_NOT]) + equal(left, right)


def store(value: bytes, target: bytes) -> bytes:
    """Encode ``Store (value, target)``."""
    return bytes([_STORE]) + value + target


def add(left: bytes, right: bytes, target: bytes = bytes([_ZERO])) -> bytes:
    """Encode ``Add (left, right, target)``; without a target the sum is only a value."""
    return bytes([_ADD]) + left + right + target


def and_(left: bytes, right: bytes, target: bytes = bytes([_ZERO])) -> bytes:
    """Encode ``And (left, right, target)``."""
    return bytes([_AND]) + left + right + target


def or_(left: bytes, right: bytes, target: bytes = bytes([_ZERO])) -> bytes:
    """Encode ``Or (left, right, target)``."""
    return bytes([_OR]) + left + right + target


def index(source: bytes, position: bytes) -> bytes:
    """Encode ``Index (source, position)`` without a target."""
    return bytes([_INDEX]) + source + position + bytes([_ZERO])


def notify(target: str, value: bytes) -> bytes:
    """Encode ``Notify (target, value)``."""
    return bytes([_NOTIFY]) + path(target) + value


def create_dword_field(source: bytes, offset: bytes, target: str) -> bytes:
    """Encode ``CreateDWordField (source, offset, target)``; the offset is in bytes."""
    return bytes([_CREATE_DWORD]) + source + offset + path(target)


def pci_config_region(target: str, offset: int, length: int) -> bytes:
    """Encode ``OperationRegion (target, PCI_Config, offset, length)``; both in bytes."""
    return (
        bytes([_EXTENDED, _OPERATION_REGION]) + path(target) + bytes([_PCI_CONFIG]) + integer(offset) + integer(length)
    )


def port_region(target: str, port: int, length: int) -> bytes:
    """Encode ``OperationRegion (target, SystemIO, port, length)``; the length is in bytes."""
    return bytes([_EXTENDED, _OPERATION_REGION]) + path(target) + bytes([_SYSTEM_IO]) + integer(port) + integer(length)


def fields(region: str, flags: int, places: dict[int, tuple[str, int]]) -> bytes:
    """Encode ``Field (region, ...) {...}``; there is no lock.

    Args:
        region: whose fields they are.
        flags: `BYTE_ACCESS` or `DWORD_ACCESS`, and `WRITE_AS_ZEROS`.
        places: name and width of each by its offset, all in bits, at rising offsets.
    """
    body, at = path(region) + bytes([flags]), 0
    for offset, (target, width) in places.items():
        if offset > at:
            body += bytes([_RESERVED_FIELD]) + _bits(offset - at)
        body += path(target) + _bits(width)
        at = offset + width
    return bytes([_EXTENDED]) + _sized(bytes([_FIELD]), body)


def byte_fields(region: str, places: dict[int, str]) -> bytes:
    """Encode ``Field (region, ByteAcc, NoLock, Preserve)`` with one-byte fields at rising offsets, in bytes."""
    return fields(region, BYTE_ACCESS, {8 * offset: (target, 8) for offset, target in places.items()})


def _bits(count: int) -> bytes:
    """Encode a field's width, a PkgLength that does not count itself."""
    if count >= 1 << 6:
        raise ValueError(f"{count} bits: a field here has fewer than 64")
    return bytes([count])


def eisa_id(text: str) -> bytes:
    """Encode ``EisaId ("PNP0501")``: three letters in 5 bits each, four hex digits, big-endian."""
    if not re.fullmatch(r"[A-Z]{3}[0-9A-F]{4}", text):
        raise ValueError(f"{text!r} is not an EISA id")
    letters = [ord(letter) - ord("A") + 1 for letter in text[:3]]
    vendor = letters[0] << 10 | letters[1] << 5 | letters[2]
    return b"\x0c" + (vendor << 16 | int(text[3:], 16)).to_bytes(4, "big")
