import threading
import time
import tracemalloc

import pytest

from vmm import host_threads
from vmm.devices.clock import GuestClock
from vmm.devices.timer import TimerService


class Service(TimerService):
    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        super().__init__(threading.RLock(), self.failures.append, GuestClock())


@pytest.fixture
def service() -> Service:
    service = Service()
    service.start()
    return service


def test_deadlines_before_the_first_run_wait_for_it() -> None:
    service = Service()
    fired = threading.Event()
    service.timer(fired.set).arm(time.monotonic_ns())
    before = threading.active_count()
    service.start()
    service.start()
    assert fired.wait(60)
    assert threading.active_count() == before + 1
    service.close()
    service.start()
    assert threading.active_count() == before


def test_an_earlier_deadline_overtakes_one_that_is_centuries_ahead(service: Service) -> None:
    fired = threading.Event()
    service.timer(lambda: None).arm(1 << 70)
    service.timer(fired.set).arm(time.monotonic_ns() + 1_000_000)
    assert fired.wait(60)
    service.close()
    assert service.failures == []


def test_cancelled_and_replaced_deadlines_do_not_fire(service: Service) -> None:
    log: list[str] = []
    done = threading.Event()
    now = time.monotonic_ns()
    cancelled = service.timer(lambda: log.append("cancelled"))
    moved = service.timer(lambda: log.append("moved"))
    with service._lock:
        cancelled.arm(now)
        cancelled.cancel()
        moved.arm(now)
        moved.arm(now + 2_000_000)
        service.timer(done.set).arm(now + 4_000_000)
    assert done.wait(60)
    service.close()
    assert log == ["moved"]


def test_a_deadline_that_is_moved_a_million_times_takes_no_memory(service: Service) -> None:
    """Firmware that polls moves its timer for ever."""
    timer = service.timer(lambda: None)
    far = time.monotonic_ns() + 10**15
    timer.arm(far)
    tracemalloc.start()
    for later in range(100_000):
        timer.arm(far + later)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    service.close()
    assert grown < 100_000


def test_nothing_fires_after_close(service: Service) -> None:
    log: list[str] = []
    service.timer(lambda: log.append("late")).arm(time.monotonic_ns() + 100_000_000)
    service.close()
    before = log.copy()  # on a busy machine its time may have come already
    time.sleep(0.15)
    assert log == before


def test_a_failing_callback_is_reported(service: Service) -> None:
    def fail() -> None:
        raise RuntimeError("broken timer")

    service.timer(fail).arm(0)
    assert service._thread is not None
    service._thread.join(60)
    assert [str(error) for error in service.failures] == ["broken timer"]
    service.close()


def test_first_comes_before_the_deadlines_that_were_there() -> None:
    service = Service()
    order: list[str] = []
    fired = threading.Event()

    def on_deadline() -> None:
        order.append("deadline")
        fired.set()

    timer = service.timer(on_deadline)
    timer.arm(time.monotonic_ns())
    service.start(lambda: order.append("first"))
    assert fired.wait(60)
    service.close()
    assert order == ["first", "deadline"]
    assert service.failures == []


def test_one_that_is_driven_tells_its_earliest_deadline_and_has_no_thread() -> None:
    """What a guest sets centuries ahead is none, for its number has more than 64 bits."""
    service, told = Service(), list[int]()
    service.clock.stand(1_000)
    service.drive(told.append)
    first, second = service.timer(lambda: told.append(-1)), service.timer(lambda: None)
    second.arm(1 << 70)
    first.arm(2_000)
    second.arm(3_000)
    service.start(lambda: None)
    assert told == [(1 << 64) - 1, 2_000, 2_000]
    assert service._thread is None
    service.clock.stand(2_000)
    assert service.run_due() == 1_000
    assert told[3:] == [-1]
    assert service.next_deadline() == 3_000
    service.close()


def test_a_start_that_ctrl_c_ended_leaves_the_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    runs = threading.Semaphore(0)

    def start(thread: threading.Thread, _purpose: str) -> None:
        thread.start()
        started.append(thread)
        assert runs.acquire(timeout=60)
        raise KeyboardInterrupt

    service = Service()
    monkeypatch.setattr(host_threads, "start", start)
    with pytest.raises(KeyboardInterrupt):
        service.start(runs.release)
    service.start(runs.release)  # there is one already
    service.close()
    assert not started[0].is_alive()
    assert not service.failures
