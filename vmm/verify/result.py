"""What a comparison says: subjects of rows, each with a verdict and, where something is wrong, the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from vmm.legible import legible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.tables.e820 import E820Entry


class Verdict(StrEnum):
    """What became of something that was offered."""

    ARRIVED = "arrived"
    """The guest found what was offered, apart from what firmware has to fill in."""
    EXTRA = "not ours"
    """The guest found more than was offered: firmware's own."""
    ALTERED = "altered"
    """The guest found something else."""
    MISSING = "missing"
    """The guest found nothing."""
    TRUE = "true"
    """The machine is as the guest was told."""
    UNTRUE = "untrue"
    """The machine is otherwise."""

    @property
    def ok(self) -> bool:
        """Whether the user got what they asked for."""
        return self in {Verdict.ARRIVED, Verdict.EXTRA, Verdict.TRUE}


@dataclass(frozen=True)
class Row:
    """One thing: what was offered, what was found, what is true, in words; why they differ, from evidence."""

    name: str
    offered: str
    found: str
    verdict: Verdict
    true: str = ""
    """Empty where nothing but the offer can be compared."""
    difference: str = ""
    reason: str = ""


@dataclass
class Subject:
    """What belongs together in one table."""

    name: str
    rows: list[Row] = field(default_factory=list)

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
        difference: str = "",
        reason: str = "",
    ) -> None:
        """Append a row; what a guest said in it becomes legible."""
        name, offered, found, true = map(legible, (name, offered, found, true))
        self.rows.append(Row(name, offered, found, verdict, true, legible(difference), legible(reason)))


@dataclass(frozen=True)
class Verification:
    """All subjects, and what they are about."""

    firmware: str
    machine: str
    elapsed_s: float
    subjects: tuple[Subject, ...]
    maps: Mapping[str, Sequence[E820Entry]] = field(default_factory=dict)
    """Memory maps by what they are: offered, found; by address. Empty where the guest told none."""

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
