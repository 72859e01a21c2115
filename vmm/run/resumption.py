"""How a machine goes on from a snapshot: what is different from the one that it was taken of."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm.config.items import FwCfgItem
from vmm.config.parts import parse_choice, several
from vmm.errors import ConfigError
from vmm.run.snapshot import check_host, fitting, resume
from vmm.tables.files import VMGENID_ADDRESS_FILE

if TYPE_CHECKING:
    from uuid import UUID

    from vmm.config.debugger import DebugAddress
    from vmm.config.machine import MachineConfig
    from vmm.platform import Platform
    from vmm.run.snapshot import Snapshot
    from vmm.run.whole import Whole

NEW_GENERATION = "auto"


class Time(StrEnum):
    """Where the clocks of a machine go on that is restored."""

    STOPPED = "stopped"
    """Where they stood."""
    NOW = "now"
    """As far ahead of that as the host's clock is."""


class Resumption(NamedTuple):
    """A snapshot, and what is to be different.

    Attributes:
        snapshot: what is gone on from.
        config: of the machine to be.
        new_generation: whether the VM generation id in it is another one.
        jump_ns: how far its time is put forward.
    """

    snapshot: "Snapshot"
    config: "MachineConfig"
    new_generation: bool
    jump_ns: int

    def debugged(self, gdb: "DebugAddress | str | None", *, hold: bool) -> "Resumption":
        """The same with a gdb server; arguments as for `vmm.MachineConfig.create`.

        Raises:
            ConfigError: that is no place for one, or there is none to wait at.
        """
        if isinstance(gdb, str):
            from vmm.config.debugger import DebugAddress

            gdb = DebugAddress.parse(gdb)
        return self._replace(config=self.config._replace(gdb=gdb, hold=hold))

    def fitting(self) -> AbstractContextManager[None]:
        """What makes the machine is inside: what does not fit is refused, as `vmm.run.snapshot.fitting` does."""
        return fitting()

    @property
    def known_files(self) -> Sequence[str]:
        """The files of fw_cfg that the guest knows, by their keys.

        Raises:
            ConfigError: the snapshot has something else there.
        """
        with fitting():
            files = self.snapshot.state["fw_cfg"]["files"]
            if not all(isinstance(name, str) for name in files):
                raise TypeError(f"files {files!r}")
            return list(files)

    def place(self, platform: "Platform") -> None:
        """Put devices where they were; io_lock is held.

        Raises:
            ConfigError: the snapshot has something else there.
        """
        with fitting():
            platform.place(self.snapshot.state["platform"])

    def resume(self, whole: "Whole", accelerator: str) -> None:
        """Let a machine go on that was put together with all of this.

        Args:
            whole: its parts; it has not run yet.
            accelerator: who executes it.

        Raises:
            ConfigError: it cannot go on here.
            KvmError: KVM does not take its state.
        """
        vcpu = whole.processors.vcpus[0]
        with fitting():
            check_host(self.snapshot, accelerator, whole.processors.cpuid, vcpu.get_tsc_khz())
        resume(self.snapshot, whole, self.jump_ns)
        if self.new_generation and whole.fw_cfg is not None:
            address = int.from_bytes(whole.fw_cfg.contents(VMGENID_ADDRESS_FILE), "little")
            if address:
                with whole.io_lock:
                    whole.memory.write(address, self.config.vmgenid or b"")
                    whole.platform.pm.notify_generation()


def prepare(
    snapshot: "Snapshot",
    fw_cfg: Mapping[str, bytes | str | Path] | Sequence[FwCfgItem | str] | str,
    generation: "UUID | str | None",
    when: Time | str,
) -> Resumption:
    """See what a machine becomes; arguments are those of `vmm.Machine.restore`.

    Raises:
        ConfigError: one of them makes no sense, or not for this machine.
    """
    config = snapshot.config
    if isinstance(fw_cfg, Mapping):
        given = tuple(FwCfgItem.of(*pair) for pair in fw_cfg.items())
    else:
        given = tuple(map(FwCfgItem.parse, several(fw_cfg, "fw_cfg", str, FwCfgItem)))
    for item in given:
        if not item.name.startswith("opt/"):
            raise ConfigError(f"-fw_cfg {item.name}: a machine that goes on can be given items below opt/ alone")
    names = {item.name for item in given}
    kept = tuple(item for item in config.fw_cfg if item.name not in names)
    config = config._replace(fw_cfg=kept + given)
    if generation is not None:
        if config.vmgenid is None:
            raise ConfigError("the snapshot's machine has no VM generation id: it was made without -device vmgenid")
        config = config._replace(vmgenid=_generation(generation))
    jump_ns = 0
    if parse_choice(Time, when, "time") is Time.NOW:
        with fitting():
            jump_ns = max(0, time.time_ns() - snapshot.state["utc_ns"])
    return Resumption(snapshot, config, generation is not None, jump_ns)


def _generation(value: "UUID | str") -> bytes:
    from uuid import uuid4

    from vmm.options import parse_uuid

    return uuid4().bytes_le if value == NEW_GENERATION else parse_uuid(value, "generation").bytes_le
