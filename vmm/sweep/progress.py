"""The progress bar of a sweep, on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """How many cells there are, how many have a result, how long the rest will take; quiet where rich is not installed.

    Args:
        whole: cells.
        done: those that have a result from before.
        enabled: draw it.
    """

    def __init__(self, whole: int, done: int, *, enabled: bool) -> None:
        self._whole, self._done = whole, done
        self._progress: Progress | None = _new_progress() if enabled else None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("cells", total=self._whole, completed=self._done, last="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, result: dict[str, Any]) -> None:
        """Count a result, and show what became of it."""
        self._done += 1
        if self._progress is not None and self._task is not None:
            last = f"{' '.join(result['axes'].values())}: {result['outcome']}"
            self._progress.update(self._task, completed=self._done, last=last)


def _new_progress() -> Progress | None:
    try:
        from rich.console import Console  # of the extra [report]
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[last]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
