"""Wherever a machine is stopped, one that is restored from there goes on as it does.

``--moments 200`` tries so many moments instead of the few that CI has time for.
"""

import itertools
import random
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from accelerators import PLAIN

from vmm import Machine, Reason, Snapshot
from vmm.errors import ConfigError
from vmm.firmware import guests
from vmm.pytest_plugin.plugin import MachineFactory
from vmm.run.console import strip_escapes
from vmm.verify import linux_guest

pytestmark = pytest.mark.needs_kvm

GENEROUS = 180.0
"""Seconds; a busy machine must not fail a test that isn't about time."""


TIMED = re.compile(r"^FILE \d+ dmesg$.*?(?=^FILE )|^\[ *[\d.]+\]|(?<=^0 ,0,1 )\d+", re.MULTILINE | re.DOTALL)
"""What has times in it of what Linux writes down, and says as it ends; and the node's RAM, of which Linux 6.12 frees
some pages of its own sooner or later."""


class Course(NamedTuple):
    """What a machine does.

    Attributes:
        firmware: what it runs.
        options: of the machine.
        until: what it shows in the end; None: it powers off.
        send: what it is to be answered.
        pause: seconds that moments are apart at the least, on the average; others up to 32 times that.
    """

    firmware: str
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed
    until: str | None = None
    send: tuple[tuple[str, str], ...] = ()
    pause: float = 0.001

    def goes_on(self, machine: Machine, answers: deque[tuple[str, str]]) -> tuple[Reason, str, str]:
        """How it ends, and all that it shows; what comes behind ``until`` is cut off somewhere."""
        outcome = machine.run(self.until, GENEROUS, answers)
        text = strip_escapes(machine.serial.since(0)).decode("utf-8", "replace")
        if self.until is not None:
            text = text[: text.rfind(self.until)]
        return outcome.reason, machine.debugcon.text(), TIMED.sub("", text)


def guest(name: str, cpus: int = 1, accel: str = "auto") -> Course:
    return Course(str(guests.path(name)), {"cpus": cpus, "accel": accel})


@contextmanager
def linux(cpus: int) -> Iterator[Course]:
    """Debian's kernel, which writes down all that it finds in the machine."""
    with linux_guest.options() as options:
        yield Course("none", {"direct": True, "cpus": cpus, "memory": "256M", **options}, pause=0.04)


OVMF = Course("ovmf", {"cpus": 2, "memory": "128M"}, "Shell> ", (("any other key to continue", "\r"),), pause=0.03)


class Moment(NamedTuple):
    """A machine as it was when it was stopped, and what was still to be answered."""

    snapshot: Snapshot
    answers: deque[tuple[str, str]]


AT_ONCE = 4
"""Moments of one machine: between them its own clocks go on, which a guest may notice if that takes long."""


def stop_at(machine: Machine, course: Course, answers: deque[tuple[str, str]], pauses: Iterator[float]) -> list[Moment]:
    """Stop a machine a few times, until it ends."""
    moments: list[Moment] = []
    while len(moments) < AT_ONCE and machine.run(course.until, next(pauses), answers).reason is Reason.TIMEOUT:
        try:
            moments.append(Moment(machine.snapshot(), deque(answers)))
        except ConfigError as error:
            if "has ended" not in str(error):  # between the deadline and the stop
                raise
    return moments


def try_moments(create: MachineFactory, course: Course, most: int, seed: str) -> None:
    """Stop machines at random moments, and compare how those that go on from there end."""
    generator = random.Random(seed)
    pauses = (course.pause * generator.uniform(0, 2 ** generator.uniform(0, 5)) for _ in itertools.count())
    tried = 0
    while tried < most:
        machine = create(course.firmware, **course.options)
        answers = deque(course.send)
        moments = stop_at(machine, course, answers, pauses)
        expected = course.goes_on(machine, answers)
        machine.close()
        assert expected[0] is (Reason.UNTIL if course.until else Reason.POWER_OFF)
        for snapshot, its in moments[: most - tried]:
            with snapshot, Machine.restore(snapshot) as restored:
                assert course.goes_on(restored, its) == expected
            tried += 1


@pytest.mark.parametrize(
    ("course", "most"),
    [
        pytest.param(guest("conformance-fw-cfg", accel=PLAIN), 2, marks=pytest.mark.hw),
        (guest("conformance-fw-cfg"), 6),
        (guest("conformance-devices"), 2),
        pytest.param(guest("probe", 4, accel=PLAIN), 6, marks=pytest.mark.hw),
        (guest("probe", 4), 6),
        (OVMF, 2),
    ],
    ids=["fw-cfg-kvm", "fw-cfg", "devices", "probe-kvm", "probe", "ovmf"],
)
def test_wherever_a_guest_is_stopped_it_goes_on_the_same_way(
    vmm_machine: MachineFactory, course: Course, most: int, request: pytest.FixtureRequest
) -> None:
    try_moments(vmm_machine, course, request.config.getoption("--moments") or most, request.node.name)


def test_wherever_linux_is_stopped_it_goes_on_the_same_way(
    vmm_machine: MachineFactory, request: pytest.FixtureRequest
) -> None:
    with linux(cpus=2) as course:
        try_moments(vmm_machine, course, request.config.getoption("--moments") or 2, request.node.name)
