"""The progress bar of a benchmark, on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """What runs now, how far it is, how long it will take; a context manager. Quiet where rich is not installed.

    Args:
        enabled: draw it.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if enabled:
            self._progress = _new_progress()

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("starting", total=1.0, rounds=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, what: str, part: float, rounds: int) -> None:
        """Show what runs now, the part done from 0 to 1, and the rounds so far."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=what, completed=part, rounds=rounds)


def _new_progress() -> Progress | None:
    try:
        from rich.console import Console  # of the extra [report]
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("round {task.fields[rounds]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
        transient=True,
    )
