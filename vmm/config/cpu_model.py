"""What ``-cpu`` says: the guest's processor is the host's, with fewer address bits or features if that is asked for."""

from typing import NamedTuple, Self

from vmm import options
from vmm.errors import ConfigError


class Bit(NamedTuple):
    """Where CPUID says that there is a feature."""

    function: int
    subleaf: int
    register: str
    bit: int


FEATURES = {
    "hypervisor": Bit(1, 0, "ecx", 31),
    "x2apic": Bit(1, 0, "ecx", 21),
    "tsc-deadline": Bit(1, 0, "ecx", 24),
    "pcid": Bit(1, 0, "ecx", 17),
    "monitor": Bit(1, 0, "ecx", 3),
    "rdrand": Bit(1, 0, "ecx", 30),
    "aes": Bit(1, 0, "ecx", 25),
    "vmx": Bit(1, 0, "ecx", 5),
    "smep": Bit(7, 0, "ebx", 7),
    "smap": Bit(7, 0, "ebx", 20),
    "tsc-adjust": Bit(7, 0, "ebx", 1),
    "rdseed": Bit(7, 0, "ebx", 18),
    "fsgsbase": Bit(7, 0, "ebx", 0),
    "umip": Bit(7, 0, "ecx", 2),
    "pku": Bit(7, 0, "ecx", 3),
    "la57": Bit(7, 0, "ecx", 16),
    "nx": Bit(0x80000001, 0, "edx", 20),
    "pdpe1gb": Bit(0x80000001, 0, "edx", 26),
    "rdtscp": Bit(0x80000001, 0, "edx", 27),
    "svm": Bit(0x80000001, 0, "ecx", 2),
    "invtsc": Bit(0x80000007, 0, "edx", 8),
}
"""QEMU's names (target/i386/cpu.c, feature_word_info) of what has no state of its own.

XSAVE's features have: KVM and CPUID must agree on it."""

DETAILS = {"svm": 0x8000000A}
"""Leaves that are about one feature: reserved, zeros, without it (AMD's APM volume 3, E.4.9; QEMU does so, too)."""

_HARMLESS = {"migratable": (True, False), "host-phys-bits": (True,), "kvm": (True,)}
_OTHER_NAMES = {"tsc_deadline": "tsc-deadline", "xd": "nx"}
MODELS = ("host", "max")
PHYSICAL_BITS = range(32, 53)
"""What CPUID can say (AMD's and Intel's architectural limit is 52), and what PAE needs."""


class CpuModel(NamedTuple):
    """What is different from the host's processor.

    Attributes:
        phys_bits: bits of a physical address; None: the host's.
        features: names of `FEATURES`, and whether the guest has each.
    """

    phys_bits: int | None = None
    features: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def parse(cls, value: Self | str) -> Self:
        """Read ``host[,phys-bits=N][,FEATURE=on|off][,+FEATURE][,-FEATURE]``; ``max`` is ``host``.

        Raises:
            ConfigError: another model or property.
        """
        if isinstance(value, CpuModel):
            return value
        options.check_type(value, "cpu", str, CpuModel)
        model, *parts = options.split_commas(value)
        if model not in MODELS:
            raise ConfigError(f"-cpu {value}: the guest sees the host's processor; known models are host and max")
        phys_bits, features = None, {}
        for part in parts:
            name, equals, text = part.partition("=")
            if part[:1] in {"+", "-"} and not equals:
                name, text = part[1:], "on" if part[0] == "+" else "off"
            elif not equals:
                text = "on"
            name = _OTHER_NAMES.get(name, name)
            if name == "phys-bits":
                phys_bits = options.parse_int(
                    text, "-cpu phys-bits=", minimum=PHYSICAL_BITS.start, maximum=PHYSICAL_BITS.stop - 1
                )
            elif name in FEATURES:
                features[name] = options.parse_bool(text, f"-cpu {name}")
            elif name not in _HARMLESS or options.parse_bool(text, f"-cpu {name}") not in _HARMLESS[name]:
                raise ConfigError(
                    f"-cpu {value}: '{part}' can't be changed here; known are phys-bits=N and {', '.join(FEATURES)}"
                )
        return cls(phys_bits, tuple(features.items()))

    def check(self) -> None:
        """Refuse what a Python caller may have made.

        Raises:
            ConfigError: no such feature, or a number of bits that no processor has.
        """
        if self.phys_bits is not None:
            options.check_type(self.phys_bits, "phys_bits", int)
            if self.phys_bits not in PHYSICAL_BITS:
                most = PHYSICAL_BITS.stop - 1
                raise ConfigError(f"-cpu phys-bits={self.phys_bits}: must be from {PHYSICAL_BITS.start} to {most}")
        for name, on in self.features:
            options.check_type(on, f"-cpu {name}", bool)
            if name not in FEATURES:
                raise ConfigError(f"-cpu {name}: can't be changed here; known are {', '.join(FEATURES)}")
