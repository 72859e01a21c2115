"""Resets as the runs of a machine see them, without a machine."""

import threading

import pytest

from vmm.run.lifetime import KEPT_RESETS, Lifetime
from vmm.run.outcome import Reason, ResetKind


def ask(life: Lifetime, cause: str = "port 0x92 <- 0x01") -> None:
    life.reset(ResetKind.GUEST, cause)


def test_what_asks_again_before_the_reset_is_the_same_reset() -> None:
    life = Lifetime(lambda: None, max_resets=1)
    with life.turn():
        ask(life, "first")
        ask(life, "second")
        life.reset(ResetKind.TRIPLE_FAULT, "third")
        assert life.end is None
        assert life.wants_reset
        life.note_reset()
        assert not life.wants_reset
        assert [reset.cause for reset in life.resets] == ["first"]
        ask(life, "fourth")
        assert life.end is not None
        assert life.end.reason is Reason.RESET_LOOP
        assert "fourth" in life.end.message


@pytest.mark.parametrize(
    ("kind", "reason"), [(ResetKind.GUEST, Reason.RESET), (ResetKind.TRIPLE_FAULT, Reason.TRIPLE_FAULT)]
)
def test_without_resets_the_first_ends_the_machine(kind: ResetKind, reason: Reason) -> None:
    life = Lifetime(lambda: None, max_resets=None)
    with life.turn():
        life.reset(kind, "why", "registers")
        assert life.end is not None
        assert (life.end.reason, life.end.details) == (reason, "registers")
        assert "why" in life.end.message
        assert not life.wants_reset
    assert life.final == life.end
    life.reset(ResetKind.USER, "machine.reset()")
    assert life.wants_reset
    life.note_reset()
    assert life.final is None


def test_a_reset_that_comes_as_the_run_ends_is_not_lost() -> None:
    life = Lifetime(lambda: None, max_resets=1)
    with life.turn():
        life.finish(Reason.UNTIL, "found")
        ask(life)
        assert life.end is not None
        assert life.end.reason is Reason.UNTIL
    with life.turn():
        assert life.end is None
        assert life.wants_reset


def test_power_off_wins_over_the_guests_reset() -> None:
    life = Lifetime(lambda: None, max_resets=1)
    with life.turn():
        ask(life)
        life.finish(Reason.POWER_OFF, "off")
        assert not life.wants_reset


def test_only_the_latest_are_kept() -> None:
    life = Lifetime(lambda: None, max_resets=1000)
    with life.turn():
        for number in range(KEPT_RESETS + 5):
            ask(life, str(number))
            life.note_reset()
    assert life.reset_count == KEPT_RESETS + 5
    assert [reset.cause for reset in life.resets] == [str(number) for number in range(5, KEPT_RESETS + 5)]


def test_threads_that_are_to_be_others_are_not_forgotten_while_somebody_looks() -> None:
    class Asked(Lifetime):
        """Is asked by another thread as soon as it was looked at for the first time."""

        asked = looked = False

        @property
        def _restart_asked(self) -> bool:
            now, self.asked = self.asked, self.asked or not self.looked
            self.looked = True
            return now

        @_restart_asked.setter
        def _restart_asked(self, asked: bool) -> None:
            self.asked = asked

    life = Asked(lambda: None)
    assert [life.take_restart() for _ in range(3)] == [False, True, False]


def test_a_run_waits_for_what_takes_a_moment() -> None:
    life = Lifetime(lambda: None)
    order: list[str] = []

    def run() -> None:
        with life.turn():
            order.append("run")

    with life.moment() as free, life.moment() as within:
        assert free
        assert not within
        with pytest.raises(RuntimeError, match="already running"), life.turn():
            pass
        thread = threading.Thread(target=run)
        thread.start()
        order.append("moment")
    thread.join()
    assert order == ["moment", "run"]
    with life.turn(), life.moment() as free:
        assert not free
    life.close()
    with pytest.raises(ValueError, match="closed"), life.moment():
        pass
