"""Where a guest's time goes: what its vCPUs were executing, a thousand times a second, and what was counted meanwhile.

C looks at the vCPUs (`native/profile.c`). Here the samples are kept, and get names once the machine stands still: an
image may be gone by then, so UEFI's list of them is looked at now and then while the guest runs.
"""

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm._native import ffi, lib
from vmm.errors import HostError

if TYPE_CHECKING:
    from vmm.debug.efi import EfiImage
    from vmm.debug.images import Images, LoadedImage

INTERVAL_NS: int = lib.PROFILE_INTERVAL_NS
"""Between two samples of a vCPU that executes."""

MAX_SAMPLES = 4 << 20
"""That are kept: a vCPU makes so many in 70 minutes. Later ones are counted as lost."""

_MAX_MARKS = 8192
_RING_SAMPLES = 1 << 12
_TAKE_SECONDS = 0.02
_MARK_SECONDS = 0.05
_LIST_SECONDS = 0.25


class Sample(NamedTuple):
    """What a vCPU was executing.

    Attributes:
        time_ns: CLOCK_MONOTONIC.
        vcpu: its index.
        address: linear, of the next instruction.
    """

    time_ns: int
    vcpu: int
    address: int


class Counts(NamedTuple):
    """What the guest had done by some moment since the machine was made.

    Attributes:
        accesses: to devices outside of KVM: ports and MMIO, a string instruction being one.
        fw_cfg_bytes: of items that were delivered.
        instructions: that the software CPU executed.
    """

    accesses: int
    fw_cfg_bytes: int
    instructions: int

    def since(self, earlier: "Counts") -> "Counts":
        """The difference."""
        return Counts(*(now - before for now, before in zip(self, earlier, strict=True)))


class Place(NamedTuple):
    """What an address belongs to.

    Attributes:
        module: the image; "" if that is not known.
        function: of it; "" likewise.
        offset: of the address in the image; the address itself, if there is none.
    """

    module: str
    function: str
    offset: int


class Profiler:
    """Samples one machine from its first run on.

    Args:
        core: the C core's ``struct vmm_vm``.
        cores: its ``struct vmm_vcpu`` pointers, by index.
        counts: returns what was done so far.
        images: gives the machine's images, once it is asked.
    """

    def __init__(
        self, core: Any, cores: Sequence[Any], counts: Callable[[], Counts], images: "Callable[[], Images]"
    ) -> None:
        self._core = core
        self._cores = list(cores)
        self._rings = []
        for vcpu in self._cores:
            ring = ffi.gc(lib.ring_new(_RING_SAMPLES, ffi.sizeof("struct profile_sample")), lib.ring_free)
            if ring == ffi.NULL:
                raise MemoryError
            vcpu.profile = ring
            self._rings.append(ring)
        self._batch = ffi.new("struct profile_sample[]", _RING_SAMPLES)
        self._times, self._addresses, self._vcpus = array("Q"), array("Q"), array("H")
        self._beyond = 0
        self._counts = counts
        self._images = images
        self._marks: list[tuple[int, Counts]] = []
        self._mark_s = _MARK_SECONDS
        self._loaded: dict[EfiImage, int] = {}
        self._due = [0.0, 0.0, 0.0]

    def poll(self) -> None:
        """To be called often while the machine runs."""
        now = time.monotonic()
        if self._is_due(0, now, _TAKE_SECONDS):
            self.take()
        if self._is_due(1, now, self._mark_s):
            self._without_devices(self._mark)
        if self._is_due(2, now, _LIST_SECONDS):
            self._without_devices(lambda: self._images().see(self._loaded))

    def take(self) -> None:
        """Take what the vCPUs have left."""
        for index, ring in enumerate(self._rings):
            while count := lib.ring_take(ring, self._batch, _RING_SAMPLES):
                if len(self._times) + count > MAX_SAMPLES:
                    self._beyond += count
                    continue
                for at in range(count):
                    self._times.append(self._batch[at].time_ns)
                    self._addresses.append(self._batch[at].address)
                self._vcpus.extend([index] * count)

    def close(self) -> None:
        """Ask for no more; no vCPU runs."""
        self.take()
        for vcpu in self._cores:
            vcpu.profile = ffi.NULL

    def finish(self, registers: Mapping[str, int]) -> "Profile":
        """What was found out so far, of a machine that stands still; the registers are those of a vCPU."""
        self.take()
        self._without_devices(partial(self._mark, last=True))
        samples = sorted(map(Sample, self._times, self._vcpus, self._addresses))
        lost = self._beyond + sum(lib.ring_dropped(ring) for ring in self._rings)
        images = self._images()
        loaded = list(zip(images.named(self._loaded), self._loaded.values(), strict=True))
        return Profile(samples, int(lost), list(self._marks), _Names(loaded, images.finder(registers)))

    def _is_due(self, what: int, now: float, interval: float) -> bool:
        if now < self._due[what]:
            return False
        self._due[what] = now + interval
        return True

    def _mark(self, *, last: bool = False) -> None:
        if len(self._marks) >= _MAX_MARKS and not last:
            self._marks = self._marks[::2]
            self._mark_s *= 2
        self._marks.append((time.monotonic_ns(), self._counts()))

    def _without_devices(self, act: Callable[[], None]) -> None:
        """Act while no device is at work, which may change memory; if one is, it can wait until the next time."""
        if lib.vmm_io_trylock(self._core):
            try:
                act()
            finally:
                lib.vmm_io_unlock(self._core)


class Profile(NamedTuple):
    """What a profiler found out.

    Attributes:
        samples: by time.
        lost: how many more there were.
        marks: CLOCK_MONOTONIC in ns, and what was counted by then.
        place: says what a sample's address belongs to.
    """

    samples: list[Sample]
    lost: int
    marks: list[tuple[int, Counts]]
    place: "_Names"

    def between(self, start_ns: int, end_ns: int) -> Counts:
        """What was counted from one moment of CLOCK_MONOTONIC to another, as exactly as there are marks."""
        return self._at(end_ns).since(self._at(start_ns))

    def within(self, start_ns: int, end_ns: int) -> Iterator[Sample]:
        """The samples from one moment until before another."""
        return (sample for sample in self.samples if start_ns <= sample.time_ns < end_ns)

    def _at(self, time_ns: int) -> Counts:
        before = [counts for at, counts in self.marks if at <= time_ns]
        return before[-1] if before else Counts(0, 0, 0)


class _Names:
    """Says what addresses belong to; knows each after the first time."""

    def __init__(self, loaded: "Sequence[tuple[LoadedImage, int]]", now: "Callable[[int], LoadedImage | None]") -> None:
        self._loaded = loaded
        self._now = now
        self._known: dict[int, list[tuple[int, Place]]] = {}

    def __call__(self, sample: Sample) -> Place:
        """What a sample's address belonged to at its time."""
        if sample.address not in self._known:
            self._known[sample.address] = list(self._candidates(sample.address))
        candidates = self._known[sample.address]
        # The last that was seen before, with what was loaded since the look before that; else what came first.
        until = sample.time_ns + int(_LIST_SECONDS * 1e9)
        return next((place for seen_ns, place in reversed(candidates) if seen_ns <= until), candidates[0][1])

    def _candidates(self, address: int) -> Iterator[tuple[int, Place]]:
        """Since when it has belonged to what, in order; at least one."""
        listed = [(seen_ns, _place(image, address)) for image, seen_ns in self._loaded if address in image]
        if listed:
            yield from listed
            return
        image = self._now(address)
        yield 0, Place("", "", address) if image is None else _place(image, address)


def _place(image: "LoadedImage", address: int) -> Place:
    function = image.function(address)
    return Place(image.name or "an image without a name", function.name if function else "", address - image.base)


def start_profiler(
    core: Any,
    cores: Sequence[Any],
    counts: Callable[[], Counts],
    images: "Callable[[], Images]",
    poll: Callable[[], None] | None,
    parts: ExitStack,
) -> tuple[Profiler, Callable[[], None]]:
    """Sample a machine; returns what does so, and what is to be called in the place of ``poll``.

    Args:
        core: as for `Profiler`, and so are cores, counts and images.
        cores: see there.
        counts: see there.
        images: see there.
        poll: what was called often so far, if anything was.
        parts: takes care of the end.
    """
    profiler = Profiler(core, cores, counts, images)
    parts.callback(profiler.close)

    def both() -> None:
        if poll is not None:
            poll()
        profiler.poll()

    return profiler, both


def arm(core: Any) -> None:
    """Have the calling thread sampled, which is about to run a vCPU, if that was asked for.

    Raises:
        HostError: the kernel gives it no timer.
    """
    if error := -lib.profile_arm(core):
        import os

        raise HostError(f"no timer for a profile: {os.strerror(error)}; raise the limit of signals (ulimit -i)")
