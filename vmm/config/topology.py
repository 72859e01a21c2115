"""How a machine's CPUs are arranged: sockets, dies, cores, threads, and the APIC ids that follow from it.

Sources: QEMU, hw/core/machine-smp.c (what ``-smp`` leaves out) and include/hw/i386/topology.h (APIC ids); Intel SDM
volume 3, 9.9.1 (fields of APIC ids).
"""

from __future__ import annotations

from vmm import options
from vmm.errors import ConfigError
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

MAX_CPUS = 1024
"""KVM_MAX_VCPUS of Linux 5.15 and later, unless the host itself has more."""

XAPIC_IDS = 255
"""APIC ids of xAPIC mode, which CPUs are in at reset; 255 itself means all (SDM volume 3, 11.6.2.1)."""

_LEVELS = ("sockets", "dies", "clusters", "cores", "threads")


class Place(NamedTuple):
    """Where one CPU is: numbers from 0, each within the one before."""

    socket: int
    die: int
    core: int
    thread: int


class Topology(NamedTuple):
    """Sockets, dies in each, cores in each of these, threads in each of those."""

    sockets: int = 1
    dies: int = 1
    cores: int = 1
    threads: int = 1

    @classmethod
    def parse(cls, value: Self | str, cpus: int | None, max_cpus: int | None) -> Smp:
        """Complete a topology, or ``-smp``'s text of one, by the numbers of CPUs; None is left out.

        Raises:
            ConfigError: they contradict each other.
            TypeError: neither the one nor the other.
        """
        if isinstance(value, Topology):
            most = value.cpus if max_cpus is None else max_cpus
            return Smp(most if cpus is None else cpus, most, value)
        options.check_type(value, "topology", str, Topology)
        counts = {"cpus": cpus, "maxcpus": max_cpus}
        return parse_smp(",".join([value, *(f"{key}={count}" for key, count in counts.items() if count is not None)]))

    @property
    def cpus(self) -> int:
        """How many CPUs that makes."""
        return self.sockets * self.cpus_per_socket

    @property
    def cpus_per_socket(self) -> int:
        """How many threads a package has."""
        return self.dies * self.cores * self.threads

    @property
    def core_offset(self) -> int:
        """The bit of an APIC id where the core's number begins, behind the thread's."""
        return (self.threads - 1).bit_length()

    @property
    def die_offset(self) -> int:
        """The same of the die's number."""
        return self.core_offset + (self.cores - 1).bit_length()

    @property
    def socket_offset(self) -> int:
        """The same of the package's."""
        return self.die_offset + (self.dies - 1).bit_length()

    def place(self, index: int) -> Place:
        """Where a CPU is, by its index: threads of a core follow each other."""
        rest, thread = divmod(index, self.threads)
        rest, core = divmod(rest, self.cores)
        socket, die = divmod(rest, self.dies)
        return Place(socket, die, core, thread)

    def apic_id(self, index: int) -> int:
        """A CPU's APIC id: with widths that are no powers of two, some ids are nobody's."""
        place = self.place(index)
        return (
            place.socket << self.socket_offset
            | place.die << self.die_offset
            | place.core << self.core_offset
            | place.thread
        )

    @property
    def has_wide_ids(self) -> bool:
        """Whether xAPIC has too few ids for it."""
        return self.apic_id(self.cpus - 1) >= XAPIC_IDS

    def index_of(self, place: Place) -> int:
        """The reverse of `place`."""
        return ((place.socket * self.dies + place.die) * self.cores + place.core) * self.threads + place.thread

    def check(self, cpus: int, max_cpus: int) -> None:
        """Refuse what does not fit these numbers of CPUs, as QEMU does.

        Raises:
            ConfigError: their product is another number, or one is out of range.
            TypeError: one is no number.
        """
        for name, number in zip(self._fields, self, strict=True):
            options.check_type(number, name, int)
            if number < 1:
                raise ConfigError(f"-smp {name}={number}: must be 1 or more")
        if self.cpus != max_cpus:
            raise ConfigError(
                f"-smp: sockets ({self.sockets}) * dies ({self.dies}) * cores ({self.cores}) * threads "
                f"({self.threads}) must be maxcpus, which is {max_cpus}; leave one of them out, and it is what fits"
            )
        if not 1 <= cpus <= max_cpus:
            raise ConfigError(f"-smp {cpus},maxcpus={max_cpus}: maxcpus is {cpus} or more, there are {cpus} at boot")


class Smp(NamedTuple):
    """What ``-smp`` says.

    Attributes:
        cpus: CPUs at boot.
        max_cpus: CPUs that there may be.
        topology: of all of these.
    """

    cpus: int = 1
    max_cpus: int = 1
    topology: Topology = Topology()


def parse_smp(value: str, option: str = "-smp") -> Smp:
    """Read QEMU's ``[cpus=]N[,maxcpus=M][,sockets=S][,dies=D][,clusters=1][,cores=C][,threads=T]``.

    What is left out is found as QEMU 6.2 and later find it: cores before sockets, sockets before threads.

    Raises:
        ConfigError: another key, not a number, zero, or numbers that contradict each other.
    """
    keys = options.parse_keys(value, option, known=("cpus", "maxcpus", *_LEVELS), implied="cpus")
    given = {
        key: options.parse_int(number, option if key == "cpus" else f"{option} {key}=") for key, number in keys.items()
    }
    if not given:
        raise ConfigError(f"{option} {value}: no number of CPUs")
    for key, number in given.items():
        if not 1 <= number <= MAX_CPUS:
            words = f"{option} {number}" if key == "cpus" else f"{option} {key}={number}"
            raise ConfigError(f"{words}: a machine has from 1 to {MAX_CPUS} CPUs, and as many of everything")
    if given.get("clusters", 1) != 1:
        raise ConfigError(f"{option} {value}: a PC has no clusters; leave them out, and say dies or cores")
    cpus, most = given.get("cpus", 0), given.get("maxcpus", given.get("cpus", 0))
    sockets, cores, threads = (given.get(key, 0) for key in ("sockets", "cores", "threads"))
    dies = given.get("dies", 1)
    if not most:
        sockets, cores, threads = sockets or 1, cores or 1, threads or 1
    elif not cores:
        sockets, threads = sockets or 1, threads or 1
        cores = most // (sockets * dies * threads)
    elif not sockets:
        threads = threads or 1
        sockets = most // (dies * cores * threads)
    threads = threads or most // (sockets * dies * cores)
    topology = Topology(sockets, dies, cores, threads)
    most = most or topology.cpus
    if topology.cpus != most:
        raise ConfigError(
            f"{option} {value}: sockets ({sockets}) * dies ({dies}) * cores ({cores}) * threads ({threads}) must be "
            f"maxcpus, which is {most}; leave one of them out, and it is what fits"
        )
    if most > MAX_CPUS:
        raise ConfigError(f"{option} {value}: these are {most} CPUs, and a machine has from 1 to {MAX_CPUS}")
    topology.check(cpus or most, most)
    return Smp(cpus or most, most, topology)
