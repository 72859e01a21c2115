"""Where firmware is on this host: ``ovmf``, ``seabios``, ``bhyve`` and our own guests by name.

QEMU's firmware descriptors come first (docs/interop/firmware.json in QEMU's source: the distribution says there which
file is what, and which VARS belongs to which CODE), then the places where distributions are known to put images.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vmm import directories, inputs, installation
from vmm.errors import ConfigError
from vmm.firmware import guests

DESCRIPTOR_DIRECTORIES = ("$XDG_CONFIG_HOME/qemu/firmware", "/etc/qemu/firmware", "/usr/share/qemu/firmware")
"""In order of precedence: a file hides those of the same name in later directories."""

OVMF_PLACES: tuple[tuple[str, str | None], ...] = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),  # Debian, Ubuntu
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),  # Debian until 12, Fedora
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),  # Fedora
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),  # Arch
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),  # openSUSE
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),  # QEMU built from source
    ("/usr/local/share/qemu/edk2-x86_64-code.fd", "/usr/local/share/qemu/edk2-i386-vars.fd"),
    ("/usr/share/ovmf/OVMF.fd", None),  # one file with both, Debian
)

SEABIOS_PLACES = (
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/local/share/qemu/bios-256k.bin",
    "/usr/share/seabios/bios.bin",
    "/usr/share/qemu/bios.bin",
)

BHYVE_PLACES = (
    "$XDG_CACHE_HOME/vmm/bhyve-firmware/both/BHYVE.fd",
    "/usr/local/share/uefi-firmware/BHYVE_UEFI.fd",
)

REMEDIES = {
    "ovmf": "install it (Debian: apt-get install ovmf), give a path, or boot 'probe', which comes with vmm",
    "seabios": "install it (Debian: apt-get install seabios), or give a path",
    "bhyve": installation.remedy(
        "build-bhyve-firmware",
        "build it with scripts/build-bhyve-firmware, or give a path",
        "give the path of FreeBSD's BHYVE_UEFI.fd (package edk2-bhyve), or build one from edk2's OvmfPkg/Bhyve",
    ),
}

_DESCRIPTOR_LIMIT = 1 << 20

_XDG_DEFAULTS = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache"}


class Located(NamedTuple):
    """Files of one firmware."""

    code: Path
    variables: Path | None = None


class Descriptor(NamedTuple):
    """What we use of one of QEMU's firmware descriptors."""

    path: Path
    code: Path
    variables: Path | None
    interfaces: frozenset[str]
    architectures: frozenset[str]
    features: frozenset[str]

    @property
    def usable(self) -> bool:
        """Whether this is UEFI that a machine of ours can run: x86-64, files that exist, no system management mode."""
        return (
            "uefi" in self.interfaces
            and "x86_64" in self.architectures
            and "requires-smm" not in self.features
            and inputs.is_file(self.code)
            and (self.variables is None or inputs.is_file(self.variables))
        )


def locate(name: str) -> Located:
    """Return the files that a name of :data:`vmm.firmware.load.NAMES` stands for.

    Raises:
        ConfigError: none of the places has it; the text says what to do.
    """
    if name == "probe":
        return Located(guests.path(name))
    if name == "ovmf":
        for descriptor in descriptors():
            if descriptor.usable:
                return Located(descriptor.code, descriptor.variables)
        candidates = [Located(Path(code), Path(variables) if variables else None) for code, variables in OVMF_PLACES]
    else:
        places = SEABIOS_PLACES if name == "seabios" else BHYVE_PLACES
        candidates = [Located(_expand(place)) for place in places]
    for candidate in candidates:
        if inputs.is_file(candidate.code) and (candidate.variables is None or inputs.is_file(candidate.variables)):
            return candidate
    raise ConfigError(f"no {name} firmware on this host: {REMEDIES[name]}")


def descriptors() -> list[Descriptor]:
    """Return the raw-flash descriptors of this host in QEMU's order; those that can't be read are left out."""
    files: dict[str, Path] = {}
    for directory in map(_expand, DESCRIPTOR_DIRECTORIES):
        # Path.glob raises where nobody may look into the directory.
        with suppress(OSError):
            for path in directory.glob("*.json"):
                files.setdefault(path.name, path)
    found = (_descriptor(files[name]) for name in sorted(files))
    return [descriptor for descriptor in found if descriptor is not None]


def variables_template(code: Path, size: int) -> Path | None:
    """Return the VARS file of ``size`` bytes that belongs to a CODE image, or None.

    A descriptor's word comes first, then the file beside it whose name has VARS (vars) for CODE (code).
    """
    candidates = [d.variables for d in descriptors() if d.variables and d.code == code]
    for old, new in (("CODE", "VARS"), ("code", "vars")):
        if old in code.name:
            renamed = code.with_name(code.name.replace(old, new))
            candidates += [renamed, renamed.with_name(renamed.name.replace(".secboot", ""))]
    return next((path for path in candidates if inputs.is_file(path) and path.stat().st_size == size), None)


def _expand(place: str) -> Path:
    if not place.startswith("$"):
        return Path(place)
    variable, _, rest = place[1:].partition("/")
    return directories.base(variable, _XDG_DEFAULTS[variable]) / rest


def _descriptor(path: Path) -> Descriptor | None:
    import json

    try:
        content: Any = json.loads(inputs.read_file(path, "firmware descriptor", limit=_DESCRIPTOR_LIMIT))
        mapping = content["mapping"]
        if mapping["device"] != "flash" or mapping["executable"].get("format", "raw") != "raw":
            return None
        template = mapping.get("nvram-template")
        return Descriptor(
            path=path,
            code=Path(mapping["executable"]["filename"]),
            variables=Path(template["filename"]) if template else None,
            interfaces=frozenset(content["interface-types"]),
            architectures=frozenset(target["architecture"] for target in content["targets"]),
            features=frozenset(content["features"]),
        )
    except (ConfigError, ValueError, LookupError, TypeError, AttributeError):
        return None
