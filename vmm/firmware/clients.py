"""Which of fw_cfg and fwctl a firmware image can speak, read from its code.

Both interfaces sit behind the same ports, so a machine has one, and the image decides which is of use. Nothing in an
image declares it: the evidence is in the instructions. An executable counts as a client if it loads the port's number
0x510 into a register, or pushes it as an argument (32-bit code), and if it also knows the interface:

* fw_cfg: the 32-bit constant "QEMU", or names of fw_cfg's files such as "etc/e820";
* fwctl: the signature "BHYV", as four bytes in a row or as four comparisons (what a compiler makes of edk2's loop).

Both conditions must hold in one executable. "QEMU" alone is in OVMF's video driver, and "BHYV" in the OEM fields of
bhyve's ACPI tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmm.devices.fw_cfg_format import CPU_COUNT_FILE
from vmm.firmware.contents import VARIABLE_STORE, Contents, FoundVolume, Module, read
from vmm.firmware.images import Interface, read_image
from vmm.layout import PORT_FW_CFG, PORT_FWCTL
from vmm.legible import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SCHEMA = "vmm-firmware/1"
"""Names what ``vmm firmware --json`` prints; changes when a key goes or means something else."""

FW_CFG = "fw_cfg"
FWCTL = "fwctl"

SMM = "smm"
"""The feature of an image that needs system management mode: edk2's PiSmmCore is in its volumes."""

PORTS = {
    FW_CFG: tuple(PORT_FW_CFG.start + offset for offset in (0, 1, 4, 8)),
    FWCTL: tuple(PORT_FWCTL.start + offset for offset in (0, 1)),
}
"""The first of each is the one that a client can't do without. 0x514 and 0x518 mean DMA."""

# mov r32, imm32 (b8+r) or push imm32 (68), or mov r16, imm16 with its operand-size prefix.
_LOAD = {
    port: re.compile(rb"[\x68\xb8-\xbf]%b\0\0|\x66[\xb8-\xbf]%b" % ((re.escape(port.to_bytes(2, "little")),) * 2))
    for port in PORTS[FW_CFG]
}

_COMPARE = rb"(?:\x3c|\x80[\xf8-\xff])"  # cmp al, imm8 and cmp r8, imm8
_BHYV = re.compile(
    rb"BHYV(?!E)|" + rb".{0,12}?".join(_COMPARE + re.escape(bytes([byte])) for byte in b"BHYV"), re.DOTALL
)

_FW_CFG_NAME = re.compile(rb"(?:etc|opt)/[A-Za-z0-9._/-]{2,50}(?=\0)")
_OID = re.compile(rb"(?<![A-Za-z0-9._-])hw\.[a-z]{2,20}(?=\0)")

# Between strings, binutils 2.41 fills up with NOPs.
_VERSION = re.compile(rb"(?<=[\0\x90])(?:rel-)?\d+\.\d+\.\d+[-+.~A-Za-z0-9]{0,60}(?=\0)")
"""What SeaBIOS's build puts behind "SeaBIOS (version %s)"."""

MAX_NAMES = 4
"""Names of a kind that are quoted for one module; others are counted."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What one executable gives away.

    Attributes:
        where: The module's name, or "the image" where there are no modules.
        ports: Port numbers that it loads into a register.
        signature: How it knows the signature: "constant" or "comparisons", or None if it does not.
        names: fw_cfg file names, or fwctl OIDs, among its strings.
    """

    where: str
    ports: tuple[int, ...]
    signature: str | None
    names: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"loads {', '.join(f'{port:#x}' for port in self.ports)}"]
        if self.signature is not None:
            parts.append(f"signature as {self.signature}")
        if self.names:
            more = f" and {len(self.names) - MAX_NAMES} more" if len(self.names) > MAX_NAMES else ""
            parts.append(f"names {', '.join(self.names[:MAX_NAMES])}{more}")
        return f"{self.where}: {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why an image is said to contain a client: at least one fact."""

    client: str
    facts: tuple[Fact, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the facts quote, sorted."""
        return tuple(sorted({name for fact in self.facts for name in fact.names}))


@dataclass(frozen=True, slots=True)
class FirmwareAnalysis:
    """What an image is.

    Attributes:
        path: The file.
        size: Its bytes.
        kind: "ovmf", "bhyve", "uefi" (volumes of neither), "seabios", "qboot", or "unknown".
        content: "code", "vars" or "code+vars" for UEFI, else "rom".
        version: What the image says its version is, or None.
        volumes: Firmware volumes, those inside compressed sections included.
        encodings: How compressed or guided sections are encoded, each once.
        architectures: Of its executables, each once: "ia32", "x64" …
        features: "secure-boot", "smm" (needs system management mode).
        modules: Number of executables.
        clients: Evidence by client, "fw_cfg" and "fwctl"; only those that were found.
        problems: What could not be read, and why.
    """

    path: Path
    size: int
    kind: str
    content: str
    version: str | None
    volumes: tuple[FoundVolume, ...]
    encodings: tuple[str, ...]
    architectures: tuple[str, ...]
    features: tuple[str, ...]
    modules: int
    clients: Mapping[str, Evidence]
    problems: tuple[str, ...]

    @property
    def recommended_interface(self) -> Interface:
        """What ``fwcfg=auto`` chooses."""
        return Interface.BHYVE if FWCTL in self.clients and FW_CFG not in self.clients else Interface.QEMU

    @property
    def reason(self) -> str:
        """Why, in one sentence without a full stop."""
        if FW_CFG in self.clients and FWCTL in self.clients:
            return "the image speaks both fw_cfg and fwctl, and fw_cfg carries more"
        if FW_CFG in self.clients:
            return "the image speaks fw_cfg"
        if FWCTL in self.clients:
            return "the image speaks fwctl and not fw_cfg"
        if self.content == "vars":
            return "a variable store has no code that would tell; fw_cfg is what most firmware speaks"
        if self.problems:
            return "the image could not be read entirely; fw_cfg is what most firmware speaks"
        return "no client of either was found; fw_cfg is what most firmware speaks"

    def as_dict(self) -> dict[str, Any]:
        """Return the analysis in types that JSON knows."""
        return {
            "schema": SCHEMA,
            "path": str(self.path),
            "size": self.size,
            "kind": self.kind,
            "content": self.content,
            "version": self.version,
            "architectures": list(self.architectures),
            "features": list(self.features),
            "modules": self.modules,
            "volumes": [
                {
                    "offset": found.volume.offset,
                    "size": found.volume.size,
                    "depth": found.depth,
                    "file_system": found.file_system,
                    "inside": list(found.inside),
                }
                for found in self.volumes
            ],
            "encodings": list(self.encodings),
            "clients": {
                client: [
                    {
                        "where": fact.where,
                        "ports": list(fact.ports),
                        "signature": fact.signature,
                        "names": list(fact.names),
                    }
                    for fact in evidence.facts
                ]
                for client, evidence in self.clients.items()
            },
            "recommended_interface": self.recommended_interface,
            "reason": self.reason,
            "problems": list(self.problems),
        }

    def text(self) -> str:
        """Return a report for people, lines ending in newlines."""
        what = [self.kind, self.content, *self.architectures, *self.features]
        lines = [f"{self.path}: {counted(self.size, 'byte')} ({_size(self.size)}): {', '.join(what)}"]
        if self.version:
            lines.append(f"version: {self.version}")
        lines += [f"volumes: {len(self.volumes) or 'none'}"]
        for found in self.volumes:
            within = f" inside {' in '.join(reversed(found.inside))}" if found.inside else ""
            at = f"{found.volume.offset:#9x} {_size(found.volume.size):>9}"
            lines.append(f"  {'  ' * found.depth}{at} {found.file_system}{within}")
        if self.volumes:
            lines.append(f"compression: {', '.join(self.encodings) or 'none'}; {counted(self.modules, 'module')}")
        for client in (FW_CFG, FWCTL):
            evidence = self.clients.get(client)
            lines.append(f"{client}: {'yes' if evidence else 'not found'}")
            lines += [f"  {fact}" for fact in evidence.facts] if evidence else []
        lines.append(f"fwcfg=auto: {self.recommended_interface}, because {self.reason}")
        lines += [f"problem: {problem}" for problem in self.problems]
        return "".join(f"{line}\n" for line in lines)


def analyze(path: Path) -> FirmwareAnalysis:
    """Read an image and tell what it is; whatever its content, it never raises but for the file itself.

    Raises:
        ConfigError: The file can't be read, is empty, or is too large for firmware.
    """
    return analyze_bytes(read_image(path), path)


def analyze_bytes(data: bytes, path: Path) -> FirmwareAnalysis:
    """Tell what an image is whose bytes were read already; ``path`` is only its name."""
    contents = read(data)
    executables = contents.modules or [Module(VARIABLE_STORE, "the image", data, None)]
    clients = {
        client: Evidence(client, facts)
        for client, facts in ((FW_CFG, _facts(executables, _fw_cfg)), (FWCTL, _facts(executables, _fwctl)))
        if facts
    }
    names = {module.name for module in contents.modules}
    features = [
        text for module, text in (("SecureBootConfigDxe", "secure-boot"), ("PiSmmCore", SMM)) if module in names
    ]
    kind, version = _kind(data, contents, clients)
    return FirmwareAnalysis(
        path=path,
        size=len(data),
        kind=kind,
        content=_content(contents),
        version=version,
        volumes=tuple(contents.volumes),
        encodings=tuple(dict.fromkeys(contents.encodings)),
        architectures=tuple(sorted({module.architecture for module in contents.modules if module.architecture})),
        features=tuple(features),
        modules=sum(module.architecture is not None for module in contents.modules),
        clients=clients,
        problems=tuple(contents.problems),
    )


def _facts(executables: list[Module], look: Callable[[Module], Fact | None]) -> tuple[Fact, ...]:
    return tuple(fact for module in executables if (fact := look(module)) is not None)


def _ports(data: bytes, client: str) -> tuple[int, ...]:
    """The client's ports that the code loads, if the indispensable one is among them."""
    first, *others = PORTS[client]
    if not _LOAD[first].search(data):
        return ()
    return (first, *(port for port in others if _LOAD[port].search(data)))


def _fw_cfg(module: Module) -> Fact | None:
    ports = _ports(module.data, FW_CFG)
    if not ports:
        return None
    names = _names(_FW_CFG_NAME, module.data)
    signature = "constant" if b"QEMU" in module.data else None
    return Fact(module.name, ports, signature, names) if signature or names else None


def _fwctl(module: Module) -> Fact | None:
    ports = _ports(module.data, FWCTL)
    match = _BHYV.search(module.data) if ports else None
    if match is None:
        return None
    signature = "constant" if match[0] == b"BHYV" else "comparisons"
    return Fact(module.name, ports, signature, _names(_OID, module.data))


def _names(pattern: re.Pattern[bytes], data: bytes) -> tuple[str, ...]:
    return tuple(sorted({match.decode() for match in pattern.findall(data)}))


def _content(contents: Contents) -> str:
    stores = [found for found in contents.volumes if found.volume.is_variable_store]
    if not contents.volumes:
        return "rom"
    if len(stores) == len(contents.volumes):
        return "vars"
    return "code+vars" if stores else "code"


def _kind(data: bytes, contents: Contents, clients: Mapping[str, Evidence]) -> tuple[str, str | None]:
    """Return whose firmware an image is, and the version it names."""
    if contents.volumes:
        if FWCTL in clients or any(CPU_COUNT_FILE in evidence.names for evidence in clients.values()):
            return "bhyve", None
        return ("ovmf" if FW_CFG in clients else "uefi"), None
    if b"SeaBIOS" in data:
        version = _VERSION.search(data)
        return "seabios", version[0].decode() if version else None
    if b"qboot" in data and FW_CFG in clients:
        return "qboot", None
    return "unknown", None


def _size(size: int) -> str:
    for unit, shift in (("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.4g} {unit}"
    return f"{size} B"
