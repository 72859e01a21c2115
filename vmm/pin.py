"""Memory of a Python object that C uses for as long as it is wanted."""

from __future__ import annotations

from vmm._native import ffi
from vmm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer


class Pinned(NamedTuple):
    """Where it is and its size, both in bytes; as long as ``pin`` is kept, it stays there."""

    address: int
    size: int
    pin: Any

    @classmethod
    def of(cls, contents: Buffer, *, writable: bool = False) -> Pinned:
        """Pin a contiguous buffer.

        Raises:
            BufferError: it is to be writable and is not.
        """
        with ffi.from_buffer(contents, require_writable=writable) as buffer:
            address, size = int(ffi.cast("uintptr_t", buffer)), len(buffer)
        # The view's owner is pinned, for a view with a buffer taken from it crashes CPython's garbage collector when it
        # comes across the view first (memory_clear in Objects/memoryobject.c).
        return cls(address, size, ffi.from_buffer(contents.obj if isinstance(contents, memoryview) else contents))
