"""What a comparison says: subjects of rows, each with a verdict and, where something is wrong, the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmm.legible import legible
from vmm.verify.values import Compared, Cpus, Side, Structure, Table, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.tables.e820 import E820Entry
    from vmm.verify.guest_report import GuestReport


@dataclass(frozen=True)
class Row:
    """One thing: what was offered, what was found, what is true, in words; why they differ, from evidence."""

    name: str
    offered: str
    found: str
    verdict: Verdict
    true: str = ""
    """Empty where nothing but the offer can be compared."""
    taken: str = ""
    """What firmware did with it; empty where it has nothing to do."""
    difference: str = ""
    reason: str = ""


@dataclass
class Subject:
    """What belongs together in one table."""

    name: str
    rows: list[Row] = field(default_factory=list)
    compared: dict[str, Compared[Any]] = field(default_factory=dict)
    """The rows that are about a value of its own, by name."""
    whole: tuple[Any, Any] = (None, None)
    """The subject as one value, offered and found, where it is one."""

    @property
    def ok(self) -> bool:
        """Whether everything in it arrived."""
        return all(row.verdict.ok for row in self.rows)

    def add(
        self,
        name: str,
        offered: str,
        found: str,
        verdict: Verdict,
        *,
        true: str = "",
        taken: str = "",
        difference: str = "",
        reason: str = "",
        values: tuple[Any, Any] | None = None,
    ) -> None:
        """Append a row; what a guest said in it becomes legible. `values` are the thing itself, offered and found."""
        name, offered, found, true, taken = map(legible, (name, offered, found, true, taken))
        row = Row(name, offered, found, verdict, true, taken, legible(difference), legible(reason))
        self.rows.append(row)
        if values is not None:
            same = sum(key == name or key.startswith(f"{name} (") for key in self.compared)
            key = f"{name} ({same + 1})" if same else name
            self.compared[key] = Compared(key, *values, verdict, _words(row))


@dataclass(frozen=True, repr=False)
class Verification:
    """All subjects, and what they are about."""

    firmware: str
    machine: str
    elapsed_s: float
    subjects: tuple[Subject, ...]
    maps: Mapping[str, Sequence[E820Entry]] = field(default_factory=dict)
    """Memory maps by what they are: offered, found; by address. Empty where the guest told none."""
    report: GuestReport | None = None
    """All that the guest told; None if it never did."""

    def __repr__(self) -> str:
        """Say what did not arrive, for a failed `assert`."""
        wrong = [row for subject in self.subjects for row in subject.rows if not row.verdict.ok]
        return f"<Verification of {self.machine}: {_why(wrong) or 'everything arrived'}>"

    @property
    def tables(self) -> dict[str, Compared[Table]]:
        """ACPI tables by name: `"MCFG"`, `"SSDT USERTEST"`; a second of one name ends with " (2)"."""
        return self._compared("ACPI tables")

    @property
    def smbios(self) -> dict[str, Compared[Structure]]:
        """SMBIOS structures by name: `"type 1 system"`."""
        return self._compared("SMBIOS")

    @property
    def items(self) -> dict[str, Compared[bytes]]:
        """fw_cfg's named items; what a guest may write, as it was before the guest began."""
        return self._compared("fw_cfg items")

    @property
    def memory(self) -> Compared[tuple[E820Entry, ...]]:
        """The memory map."""
        return self._whole("memory map")

    @property
    def cpus(self) -> Compared[Cpus]:
        """How many CPUs there are."""
        return self._whole("processors")

    @property
    def boot_order(self) -> Compared[tuple[str, ...]]:
        """Paths of `bootorder`, and those that firmware knows in its order; Linux does not tell."""
        return self._whole("boot order")

    @property
    def offered(self) -> Side:
        """All that the machine offered."""
        return self._side("offered")

    @property
    def found(self) -> Side:
        """All that the guest found."""
        return self._side("found")

    @property
    def ok(self) -> bool:
        """Whether everything arrived."""
        return all(subject.ok for subject in self.subjects)

    def subject(self, name: str) -> Subject:
        """One of the subjects.

        Raises:
            KeyError: there is none of that name.
        """
        for subject in self.subjects:
            if subject.name == name:
                return subject
        raise KeyError(name)

    def _compared(self, name: str) -> dict[str, Compared[Any]]:
        return next((subject.compared for subject in self.subjects if subject.name == name), {})

    def _whole(self, name: str) -> Compared[Any]:
        subject = next((subject for subject in self.subjects if subject.name == name), None)
        if subject is None:
            return Compared(name, None, None, Verdict.MISSING, "the guest did not tell")
        wrong = [row for row in subject.rows if not row.verdict.ok]
        return Compared(name, *subject.whole, wrong[0].verdict if wrong else Verdict.ARRIVED, _why(wrong))

    def _side(self, which: str) -> Side:
        named = (self.tables, self.smbios, self.items)
        tables, smbios, items = (
            {name: value for name, both in pairs.items() if (value := getattr(both, which)) is not None}
            for pairs in named
        )
        return Side(
            tables=tables,
            smbios=smbios,
            cpus=getattr(self.cpus, which),
            boot_order=getattr(self.boot_order, which) or (),
            items=items,
            e820=getattr(self.memory, which) or (),
        )


def _words(row: Row) -> str:
    """Return what differs in a row, and why; nothing if nothing does."""
    return ", because ".join(text for text in (row.difference, row.reason) if text)


def _why(rows: Sequence[Row]) -> str:
    """Return rows' verdicts and their reasons in one line."""
    return "; ".join(f"{row.name} {row.verdict}" + (f": {_words(row)}" if _words(row) else "") for row in rows)
