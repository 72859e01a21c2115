"""What is known of why a run ended, as plain data: of each vCPU, and of what the guest last asked of its devices.

`vmm.debug.why` finds out what is in it about one vCPU, and `vmm.run.failure` puts it together.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vmm.cpu.paging import Walk

SHOWN_ACCESSES = 8
"""Of those that are kept, the text has the last so many."""

_EXCEPTIONS = (
    *("#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP", "#PF", ""),
    *("#MF", "#AC", "#MC", "#XM", "#VE", "#CP"),
)
"""By vector: Intel SDM volume 3, table 6-1."""
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
PAGE_FAULT = 14


class Place(NamedTuple):
    """An address in an image that is known.

    Attributes:
        address: linear.
        module: the image's name.
        offset: in the image.
        function: "" if no file says it.
        function_offset: in the function.
    """

    address: int
    module: str
    offset: int
    function: str = ""
    function_offset: int = 0

    def __str__(self) -> str:
        image = f"{self.module or 'an image without a name'}+{self.offset:#x}"
        return f"{image}, {self.function}+{self.function_offset:#x}" if self.function else image


class Instruction(NamedTuple):
    """One that was decoded: where, its bytes in hexadecimal, and its text as Intel writes it."""

    address: int
    code: str
    text: str


class GuestException(NamedTuple):
    """An exception on its way to the guest's handler.

    Attributes:
        vector: 0 to 31.
        error_code: None: this one has none.
        rip: linear, of the instruction; None: not known.
        cr2: of a page fault, the address; None of others.
        place: what RIP is in.
    """

    vector: int
    error_code: int | None
    rip: int | None = None
    cr2: int | None = None
    place: Place | None = None

    @classmethod
    def of(
        cls, vector: int, error_code: int, rip: int | None = None, cr2: int | None = None, place: Place | None = None
    ) -> "GuestException":
        """One with a processor's values for all of it, of which it has those that its vector has."""
        has_code = vector in _WITH_ERROR_CODE
        return cls(vector, error_code if has_code else None, rip, cr2 if vector == PAGE_FAULT else None, place)

    @property
    def name(self) -> str:
        """As processors' manuals call it: ``#PF``."""
        known = _EXCEPTIONS[self.vector] if self.vector < len(_EXCEPTIONS) else ""
        return known or f"vector {self.vector}"

    def __str__(self) -> str:
        words = self.name
        if self.error_code is not None:
            words += f" with error code {self.error_code:#x}"
            words += f" ({_page_fault(self.error_code)} {self.cr2:#x})" if self.cr2 is not None else ""
        if self.rip is not None:
            words += f" at {self.rip:#x}" + (f" ({self.place})" if self.place else "")
        return words


def _page_fault(error_code: int) -> str:
    """Intel SDM volume 3, figure 4-12."""
    what = "a fetch from" if error_code & 16 else "a write to" if error_code & 2 else "a read of"
    ring = "ring 3, " if error_code & 4 else ""
    why = "reserved bits, " if error_code & 8 else "" if error_code & 1 else "not present, "
    return f"{ring}{why}{what}"


class Access(NamedTuple):
    """An access to a device.

    Attributes:
        vcpu: whose; None: KVM did not say, as of writes that it kept for a while.
        device: its name now; "" where nobody is.
        kind: ``port`` or ``mmio``.
        address: port, or GPA.
        size: bytes.
        elements: of a string instruction, else 1.
        is_write: whether the guest wrote.
        value: what was read or written last.
        times: how often the same was done in a row.
    """

    vcpu: int | None
    device: str
    kind: str
    address: int
    size: int
    elements: int
    is_write: bool
    value: int
    times: int

    def __str__(self) -> str:
        what = ("OUT" if self.is_write else "IN") if self.kind == "port" else "store" if self.is_write else "load"
        string = f" of {self.elements} elements" if self.elements > 1 else ""
        times = f", {self.times:,} times" if self.times > 1 else ""
        arrow = "<-" if self.is_write else "->"
        return (
            f"{what} {self.address:#x} {arrow} {self.value:#0{2 + 2 * self.size}x}{string}{times}"
            f" ({self.device or 'nobody is there'})"
        )


class VcpuEvidence(NamedTuple):
    """What one vCPU was doing.

    Attributes:
        vcpu: which, by index.
        started: whether it has executed anything; else nothing more is known.
        halted: whether it waits in HLT.
        mode: of the code, in words.
        ring: 0 to 3.
        rip: linear.
        place: what that is in.
        registers: by name, as `vmm.cpu.registers.Registers.values`.
        code: from RIP on.
        verdict: why the code there never ends by itself, in a sentence; "" where it may.
        stack: who called, the innermost first.
        walks: through the page tables, of addresses that are not mapped, by the register that has them.
        exceptions: the last ones, in order.
    """

    vcpu: int
    started: bool
    halted: bool = False
    mode: str = ""
    ring: int = 0
    rip: int = 0
    place: Place | None = None
    registers: Mapping[str, int] = {}
    code: tuple[Instruction, ...] = ()
    verdict: str = ""
    stack: tuple[Place, ...] = ()
    walks: tuple[tuple[str, Walk], ...] = ()
    exceptions: tuple[GuestException, ...] = ()

    @property
    def where(self) -> str:
        """In a few words, the same for all that are in the same place."""
        if not self.started:
            return "not started"
        rip = self.registers.get("rip", self.rip)
        place = f" ({self.place})" if self.place else ""
        return f"at RIP {rip:#x}{place}, {self.mode}, ring {self.ring}{', halted' if self.halted else ''}"

    @property
    def text(self) -> str:
        """Lines, for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if not self.code:
            yield f"no memory at RIP: {self.rip:#x}"
        for number, instruction in enumerate(self.code):
            mark = "=>" if number == 0 else "  "
            yield f"{mark} {instruction.address:x}: {instruction.code:<24} {instruction.text}"
        if self.verdict:
            yield self.verdict
        # Of code that goes on, its last exception may be one of many and long ago.
        if self.exceptions and (self.verdict or self.exceptions[-1].vector == _DOUBLE_FAULT):
            # The first, the one on the way to its handler, and what became of both.
            last = self.exceptions[-3:] if self.exceptions[-1].vector == _DOUBLE_FAULT else self.exceptions[-1:]
            yield f"last exception: {', then '.join(map(str, last))}"
        if self.stack:
            yield f"on the stack: {', '.join(map(str, self.stack))}"
        for name, walk in self.walks:
            yield f"{name} {walk.text}".replace("\n", "\n  ")


_DOUBLE_FAULT = 8


class Evidence(NamedTuple):
    """Of a run's end.

    Attributes:
        vcpus: by index.
        accesses: the last ones to devices, in order.
        said: what the guest said of a failure of its own; "" if nothing.
    """

    vcpus: tuple[VcpuEvidence, ...]
    accesses: tuple[Access, ...]
    said: str

    def text(self, but: int | None = None) -> str:
        """Lines, for people; vCPUs in the same place share theirs.

        Args:
            but: a vCPU that was told of already.
        """
        places: dict[str, list[VcpuEvidence]] = {}
        for vcpu in self.vcpus:
            if vcpu.vcpu != but:
                places.setdefault(vcpu.where, []).append(vcpu)
        lines: list[str] = []
        explained = 0
        for where, those in places.items():
            lines.append(f"vCPU {', '.join(str(vcpu.vcpu) for vcpu in those)}: {where}")
            # Whoever waits for another processor says nothing of why nothing goes on.
            if those[0].started and (those[0].vcpu == 0 or not those[0].halted) and explained < _MOST_EXPLAINED:
                explained += 1
                lines += (f"  {line}" for line in those[0].text.splitlines())
        if self.accesses:
            lines.append("last accesses to devices:")
            lines += (f"  {access}" for access in self.accesses[-SHOWN_ACCESSES:])
        if self.said:
            lines.append(f"the guest said: {self.said}")
        return "\n".join(lines)


_MOST_EXPLAINED = 4
"""Places whose code is shown."""
