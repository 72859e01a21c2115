"""Runs what of a matrix has no result yet."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, wait
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import HostError
from vmm.sweep import cell as cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor, Future

    from vmm.sweep.matrix import Cell

_WAIT_S: Final = 0.5


def run(
    todo: Iterable[Cell],
    executor: Executor,
    deadline: float,
    on_result: Callable[[dict[str, Any]], object],
    ahead: int,
) -> None:
    """Run cells; each result comes as it is there, in any order.

    Args:
        todo: the cells.
        executor: runs them.
        deadline: seconds that a guest may take.
        on_result: called on this thread.
        ahead: how many are handed over before the first has ended; the rest waits here, where it is easily given up.

    Raises:
        HostError: the executor is broken.
        KeyboardInterrupt: what runs is ended, without results.
    """
    cells.resume()
    waiting = iter(todo)
    running: dict[Future[dict[str, Any]], Cell] = {}
    try:
        more = True
        while True:
            while more and len(running) < ahead:
                cell = next(waiting, None)
                more = cell is not None
                if cell is not None:
                    running[executor.submit(cells.run_cell, cell.axes, cell.words, deadline)] = cell
            if not running:
                return
            # Not for ever: a Ctrl-C has to be seen.
            done, _ = wait(running, timeout=_WAIT_S, return_when=FIRST_COMPLETED)
            for future in done:
                on_result(_result(future, running.pop(future)))
    except BrokenExecutor as error:
        raise HostError(f"the executor is broken: {error}; what has a result is kept, run this again") from None
    finally:
        for future in running:
            future.cancel()
        if running:
            cells.stop_all()


def _result(future: Future[dict[str, Any]], cell: Cell) -> dict[str, Any]:
    """Return a cell's result; an executor that lost the cell's process is one, too."""
    try:
        return dict(future.result())
    except (BrokenExecutor, CancelledError, cells.StoppedError):
        raise
    except Exception as error:  # noqa: BLE001  # whatever a remote executor makes of a worker's death
        return {
            "schema": cells.SCHEMA,
            "axes": cell.axes,
            "words": [*cell.words],
            "outcome": cells.Outcome.DIED.value,
            "why": f"{type(error).__name__}: {error}"[:300],
        }
