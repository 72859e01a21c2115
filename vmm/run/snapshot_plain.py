"""Snapshots' state and configurations as JSON, with their bytes beside it.

A configuration consists of a few named tuples, enumerations and paths; which ones, `_MODULES` says, so that a file can
make nothing else.
"""

import json
from collections.abc import Callable, Mapping
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

from vmm.errors import ConfigError

_MODULES = frozenset(
    {
        "vmm.bus",
        "vmm.config.cpu_model",
        "vmm.config.debugger",
        "vmm.tables.memory_attributes",
        "vmm.config.interface",
        "vmm.config.items",
        "vmm.config.machine",
        "vmm.config.numa",
        "vmm.config.parts",
        "vmm.cpu.paging",
        "vmm.config.topology",
        "vmm.debug.images",
        "vmm.devices.fw_cfg_item",
        "vmm.devices.vmcoreinfo",
        "vmm.disks.drives",
        "vmm.errors",
        "vmm.firmware.images",
        "vmm.inputs",
        "vmm.kvm.structs",
        "vmm.memory",
        "vmm.run.evidence",
        "vmm.run.outcome",
        "vmm.run.timeline",
        "vmm.softcpu.decision",
        "vmm.softcpu.engine",
        "vmm.tables.acpi_user",
        "vmm.tables.boot_order",
        "vmm.tables.e820",
        "vmm.tables.smbios_options",
    }
)

_BYTES, _TUPLE, _NAMED, _ENUM, _PATH = "bytes", "tuple", "named", "enum", "path"


def encode(value: object) -> tuple[bytes, bytes]:
    """The JSON of a value, and the bytes that it refers to.

    Raises:
        ConfigError: it has something in it that is known only to this process.
    """
    blobs = bytearray()
    text = json.dumps(_encode(value, blobs), separators=(",", ":"))
    return text.encode(), bytes(blobs)


def decode(text: bytes, blobs: bytes) -> Any:
    """The reverse of `encode`.

    Raises:
        ValueError: that gave something else.
    """
    try:
        return _decode(json.loads(text), _Blobs(blobs))
    except (AttributeError, ImportError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"not a snapshot's description: {error!r}") from None


def _encode(value: Any, blobs: bytearray) -> Any:
    if isinstance(value, Enum):
        return {_ENUM: [_name_of(type(value)), value.value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return {_PATH: str(value)}
    if isinstance(value, list):
        return [_encode(one, blobs) for one in value]
    if isinstance(value, Mapping):
        # An object with a single key may stand for something else.
        return {"": [[key, _encode(its, blobs)] for key, its in value.items()]}
    if isinstance(value, tuple):
        fields = [_encode(one, blobs) for one in value]
        return {_NAMED: [_name_of(type(value)), fields]} if hasattr(value, "_fields") else {_TUPLE: fields}
    if callable(value):
        raise ConfigError(f"a value that a function gives cannot be kept in a file: {value!r}")
    data = memoryview(value)
    blobs += data
    return {_BYTES: [len(blobs) - data.nbytes, data.nbytes]}


def _name_of(kind: type) -> str:
    if kind.__module__ not in _MODULES:
        raise ConfigError(f"{kind.__module__}.{kind.__qualname__} cannot be kept in a file")
    return f"{kind.__module__}:{kind.__name__}"


class _Blobs:
    """The bytes beside a description, of which each belongs to one value: what is made of them is no larger."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._taken = 0

    def take(self, offset: int, size: int) -> bytes:
        if not self._taken == offset <= offset + size <= len(self._data):
            raise ValueError("bytes outside of the file, or another value's")
        self._taken += size
        return bytes(self._data[offset : offset + size])


def _decode(value: Any, blobs: _Blobs) -> Any:
    if isinstance(value, list):
        return [_decode(one, blobs) for one in value]
    return _decode_object(value, blobs) if isinstance(value, dict) else value


def _decode_object(value: dict[str, Any], blobs: _Blobs) -> Any:
    ((what, its),) = value.items()
    match what:
        case "":
            return {key: _decode(one, blobs) for key, one in its}
        case "bytes":
            return blobs.take(*its)
        case "tuple":
            return tuple(_decode(one, blobs) for one in its)
        case "path":
            return Path(its)
        case "enum":
            return _class(its[0], Enum)(its[1])
        case "named":
            return _class(its[0], tuple)(*(_decode(one, blobs) for one in its[1]))
        case _:
            raise ValueError(f"{what}: unknown")


def _class(name: str, kind: type) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found = getattr(import_module(module), attribute) if module in _MODULES else None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{name}: unknown")  # noqa: TRY004  # of the file, whatever it is
    return found
