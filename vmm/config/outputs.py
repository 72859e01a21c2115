"""Every file that a run writes, opened here before anything runs, and the socket where it finds a debugger.

An output that is also an input, or that two options name, is refused: nothing has been changed by then. Devices, pipes,
and files that are this process's own stdout or stderr are written as they are.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from functools import partial

from vmm.config.output_files import HURRIED_SECONDS, Document, GrowingFile, refusing
from vmm.config.parts import TargetKind
from vmm.errors import ConfigError, HostError
from vmm.options import shown
from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import Final, Self

    from vmm.config.debugger import DebugAddress
    from vmm.config.listening import DebugSocket
    from vmm.config.machine import MachineConfig
    from vmm.disks.image import DiskImage
    from vmm.firmware.images import VariableStore
    from vmm.firmware.variables import VariableFile
    from vmm.vhost.backend import Backend

STANDARD: Final = "-"
"""The path that stands for stdout; for the access log, for text on stderr."""

_STDOUT, _STDERR = 1, 2

_Identity = tuple[object, ...]
"""Equal for two paths that lead to one file."""

_STDOUT_ITSELF: Final[_Identity] = ("stdout",)
_CONSOLE: Final = "a console on stdout"


class Outputs:
    """The files of one run; a context manager that closes them.

    Args:
        config: the machine, for its consoles, its access log, and its inputs, which no output may be; None: the run has
            no machine of its own.
        documents: paths by option; "-" is stdout, None: not asked for.
        copy_disk: of a machine that goes on, gives the disk that an earlier one made of a folder, by its place among
            the drives.

    Attributes:
        serial: the file that takes COM1's output alone, if there is one.
        debugcon: likewise, of the debug port.
        trace: where the access log goes, if to a file.
        record: where what the guest gets from outside goes, if anywhere.
        variables: the VARS file that the guest's variables are kept in, if there is one.
        disks: the images of the guest's disks, also those that are only read, and backends of vhost-user devices.
        listener: where a debugger may come, if one may.
        documents: what was asked for, by option.

    Raises:
        ConfigError: one of them cannot be written, is an input, or is the file of another.
    """

    def __init__(
        self,
        config: MachineConfig | None,
        documents: Mapping[str, str | None] | None = None,
        copy_disk: Callable[[int], int] | None = None,
    ) -> None:
        self._closers = ExitStack()
        self._inputs = {} if config is None else _identities(config.input_files)
        self._taken: dict[_Identity, str] = {}
        self._created: list[str] = []
        self._streams: list[GrowingFile] = []
        self.serial: GrowingFile | None = None
        self.debugcon: GrowingFile | None = None
        self.trace: GrowingFile | None = None
        self.record: GrowingFile | None = None
        self.variables: VariableFile | None = None
        self.disks: tuple[DiskImage | Backend, ...] = ()
        self.listener: DebugSocket | None = None
        self.documents: dict[str, Document] = {}
        self._scribe: tuple[int, ...] = ()
        self._logs_to_stderr = config is not None and config.trace == STANDARD
        try:
            if config is not None:
                self._open_variables(config.firmware.variables)
                if config.drives or config.vhost:
                    self._open_disks(config, copy_disk)
                self._open_streams(config)
            for option, path in (documents or {}).items():
                if path is not None:
                    self.documents[option] = self._document(option, path)
            if config is not None and config.gdb is not None:
                self._listen(config.gdb)
            for stream in self._streams:
                stream.begin()
        except BaseException:
            self.close()
            for path in self._created:
                os.unlink(path)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def separate(self) -> None:
        """Have another process write what needs a file to be opened: this one is about to lose the right to.

        To be called while there is one thread.

        Raises:
            HostError: the host gives no further process.
        """
        writers: list[Document | VariableFile | DebugSocket] = [
            document for document in self.documents.values() if document.opens
        ]
        if self.variables is not None:
            writers.append(self.variables)
        if self.listener is not None and self.listener.address.path is not None:
            writers.append(self.listener)
        if not writers:
            return
        from vmm.config.scribe import Scribe

        scribe = Scribe([writer.put for writer in writers])
        for index, writer in enumerate(writers):
            writer.put = partial(scribe.write, index)
        self._scribe = scribe.descriptors
        files = self._closers.pop_all()
        self._closers.callback(scribe.close)  # last: closing the variables' file may need it
        self._closers.callback(files.close)

    def close(self) -> None:
        """Close the files; may be called twice."""
        self._closers.close()

    @property
    def descriptors(self) -> list[int]:
        """What devices write to while the machine runs, and read of the variables' file."""
        fds = [*self._scribe, *(stream.fd for stream in self._streams)]
        if self.variables is not None:
            fds.append(self.variables.fd)
        return [*fds, _STDERR] if self._logs_to_stderr else fds

    def note_leaving(self, leaving: Callable[[], bool]) -> None:
        """Tell streams what says that the machine is to stop: no reader is waited for much longer then."""
        for stream in self._streams:
            stream.leaving = leaving

    def hurry(self) -> None:
        """Wait for no reader much longer: somebody wants this to end."""
        for stream in self._streams:
            stream.patience = HURRIED_SECONDS

    @property
    def lost(self) -> list[str]:
        """A line for each stream of which something was not read in time."""
        return [
            f"{stream.name}: {stream.lost} bytes were not written, for nobody read what came before"
            for stream in self._streams
            if stream.lost
        ]

    @property
    def failed(self) -> bool:
        """Whether a stream lacks something that the machine had written to it."""
        return any(stream.failed for stream in self._streams)

    def write(self, makers: Mapping[str, Callable[[], str]]) -> None:
        """Write the documents that were asked for; one that fails keeps no other from being written.

        Args:
            makers: by option, what returns a document's text.

        Raises:
            HostError: what could not be written, and why.
        """
        failures = []
        for option, document in self.documents.items():
            try:
                document.write(makers[option]())
            except HostError as error:
                failures.append(str(error))
        if failures:
            raise HostError("; ".join(failures))

    def check(self, option: str, path: str) -> None:
        """See that a file can be written, as a whole, by somebody else.

        Raises:
            ConfigError: it cannot, is an input, or is the file of another option.
        """
        self._document(option, path)

    def _open_variables(self, store: VariableStore | None) -> None:
        if store is not None and store.persist:
            from vmm.firmware.variables import VariableFile

            self.variables = VariableFile(store.path, len(store.data))
            self._closers.callback(self.variables.close)

    def _open_disks(self, config: MachineConfig, copy_disk: Callable[[int], int] | None) -> None:
        opened: list[DiskImage | Backend] = []
        for index, drive in enumerate(config.drives):
            if drive.served:
                from vmm.vhost.storage_daemon import serve  # few disks are

                opened.append(self._closers.enter_context(serve(drive, config.user)))
            else:
                from vmm.disks import image

                copy = None if copy_disk is None or not drive.folder else copy_disk(index)
                opened.append(self._closers.enter_context(image.DiskImage(drive, copy, index)))
        for device in config.vhost:
            from vmm.vhost.backend import connect

            opened.append(self._closers.enter_context(connect(device)))
        self.disks = tuple(opened)

    def _listen(self, address: DebugAddress) -> None:
        from vmm.config.listening import DebugSocket  # few machines are debugged

        self.listener = DebugSocket(address)
        self._closers.callback(self.listener.close)

    def _open_streams(self, config: MachineConfig) -> None:
        consoles = {"-serial": config.serial, "-debugcon": config.debugcon}
        if any(target.kind is TargetKind.STDIO for target in consoles.values()):
            self._taken[_STDOUT_ITSELF] = _CONSOLE
        self.serial, self.debugcon = (
            None if target.path is None else self._stream(option, str(target.path), f"file:{target.path}")
            for option, target in consoles.items()
        )
        if config.trace is not None and config.trace != STANDARD:
            self.trace = self._stream("--trace", config.trace, config.trace)
        if config.record == STANDARD:
            name = shown("--record", STANDARD)
            self._take(_STDOUT_ITSELF, "--record", name)
            self.record = self._growing(name, self._own_stdout(), begins_empty=False)
        elif config.record is not None:
            self.record = self._stream("--record", config.record, config.record)

    def _stream(self, option: str, path: str, target: str) -> GrowingFile:
        name = shown(option, target)
        with refusing(name):
            fd = self._open(path)
            if fd is None:
                fd = self._create(path)
        used, own = self._taken_as(fd, option, name)
        if _has_reader(fd):
            os.set_blocking(fd, False)  # no other program has it
            used = fd
        return self._growing(name, used, begins_empty=own and stat.S_ISREG(os.fstat(used).st_mode))

    def _own_stdout(self) -> int:
        """Return a descriptor of stdout that does not make its writers wait, where stdout has a reader."""
        if _has_reader(_STDOUT):
            with suppress(OSError):  # a socket, or another user's
                fd = os.open(f"/proc/self/fd/{_STDOUT}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
                self._closers.callback(os.close, fd)
                return fd
        return _STDOUT

    def _growing(self, name: str, fd: int, *, begins_empty: bool) -> GrowingFile:
        stream = GrowingFile(name, fd, begins_empty=begins_empty)
        self._streams.append(stream)
        return stream

    def _document(self, option: str, path: str) -> Document:
        name = shown(option, path)
        if path == STANDARD:
            self._take(_STDOUT_ITSELF, option, name)
            return Document(name, path, _STDOUT, replaced=False)
        with refusing(name):
            fd = self._open(path)
            if fd is None:
                self._take(_try_to_create(os.path.realpath(path)), option, name)
                return Document(name, os.path.realpath(path), None, replaced=True)
        fd, own = self._taken_as(fd, option, name)
        replaced = own and stat.S_ISREG(os.fstat(fd).st_mode)
        return Document(name, os.path.realpath(path), fd, replaced=replaced)

    def _open(self, path: str) -> int | None:
        """Return the file, as it is; None if there is none."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        except FileNotFoundError:
            return None
        self._closers.callback(os.close, fd)
        return fd

    def _create(self, path: str) -> int:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._created.append(path)
        self._closers.callback(os.close, fd)
        return fd

    def _taken_as(self, fd: int, option: str, name: str) -> tuple[int, bool]:
        """Return what to write to instead of ``fd``, and whether that is a file of its own."""
        there = os.fstat(fd)
        for standard, identity in ((_STDOUT, _STDOUT_ITSELF), (_STDERR, None)):
            if _is_open_as(standard, there):
                self._take(identity or _identity(there), option, name)
                return standard, False
        self._take(_identity(there), option, name)
        return fd, True

    def _take(self, identity: _Identity | None, option: str, name: str) -> None:
        if identity is None:
            return
        if identity in self._inputs:
            raise ConfigError(f"{name}: {self._inputs[identity]} is read from there; give another path")
        other = self._taken.setdefault(identity, option)
        if other == _CONSOLE:
            raise ConfigError(f"{name} and {_CONSOLE} would mix; add -serial none -debugcon none (or file:PATH)")
        if other != option:
            raise ConfigError(f"{name}: {other} writes there; give another path")


def _identities(files: Iterable[tuple[str, str | Path]]) -> dict[_Identity, str]:
    """Return what the inputs are called, by identity."""
    found: dict[_Identity, str] = {}
    for name, path in files:
        with suppress(OSError, ValueError):  # who opens it will say
            identity = _identity(os.stat(path))
            if identity is not None:
                found.setdefault(identity, name)
    return found


def _identity(there: os.stat_result) -> _Identity | None:
    """Return what two paths have in common if they are one file; None for devices that many may use."""
    if stat.S_ISCHR(there.st_mode):
        return None
    return ("device", there.st_rdev) if stat.S_ISBLK(there.st_mode) else (there.st_dev, there.st_ino)


def _is_open_as(standard: int, there: os.stat_result) -> bool:
    """Whether a file is what the caller has as a standard stream; /dev/null is nobody's."""
    with suppress(OSError):  # the caller may have closed it
        return os.path.samestat(os.fstat(standard), there) and (not stat.S_ISCHR(there.st_mode) or os.isatty(standard))
    return False


def _has_reader(fd: int) -> bool:
    """Whether somebody has to read what is written there before more of it can be."""
    return stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd)


def _try_to_create(path: str) -> _Identity:
    """Find out that a file can be made; return the identity that it will have."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    os.unlink(path)
    directory = os.stat(os.path.dirname(path))
    return directory.st_dev, directory.st_ino, os.path.basename(path)
