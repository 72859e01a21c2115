"""Who runs the cells: processes on this host, workers of Dask, or any other executor like `concurrent.futures`' own."""

from __future__ import annotations

import importlib
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm import installation
from vmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROCESSES = "processes"

_DASK = "dask://"
_CONNECT_S = 30
_RETRIES = 3
"""How many workers one cell may lose."""


@contextmanager
def executor(name: str, jobs: int) -> Iterator[Executor]:
    """Give the executor of a name.

    Args:
        name: ``processes``; ``dask://HOST:PORT``, a scheduler; or ``MODULE:CALLABLE``, which makes one.
        jobs: how many cells may run at once on this host.

    Raises:
        ConfigError: it names none.
        HostError: nobody answers there, or a package is not installed.
    """
    if name == PROCESSES:
        # A cell is a process of its own; a thread waits for each.
        with ThreadPoolExecutor(jobs, "cell") as threads:
            yield threads
    elif name.startswith(_DASK):
        with _dask(name.removeprefix(_DASK)) as remote:
            yield remote
    else:
        with _named(name) as found:
            yield found


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise HostError(f"--executor {_DASK} needs distributed: {installation.extra_remedy('dask')}") from None
    try:
        client = Client(f"tcp://{address}", timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise HostError(f"--executor {_DASK}{address}: no scheduler answers: {error}") from None
    with client:
        # Not pure: two cells with the same words would be one.
        yield client.get_executor(pure=False, retries=_RETRIES)


def _named(name: str) -> Executor:
    module, _, attribute = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"--executor {name}: {error}; known are {PROCESSES}, {_DASK}HOST:PORT and MODULE:CALLABLE"
        ) from None
    if not hasattr(made, "submit") or not hasattr(made, "__enter__"):
        raise ConfigError(f"--executor {name}: {made!r} is no executor, with submit() and shutdown()")
    executor: Executor = made
    return executor
