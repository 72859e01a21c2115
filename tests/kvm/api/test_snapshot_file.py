"""Snapshots in files: whole ones, damaged ones, and what somebody else made."""

import hashlib
import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerators import PLAIN
from waiting_guest import DONE, GENEROUS, READY, answers_as, write_waiting_guest

from vmm import Machine, Snapshot
from vmm.config.parts import Target
from vmm.errors import ConfigError, VmmError
from vmm.run import snapshot_file

pytestmark = pytest.mark.needs_kvm


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """A guest that waits, with all that a snapshot may have; plain KVM."""
    directory = tmp_path_factory.mktemp("waits")
    disk = directory / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    drive = f"file={disk},format=raw,if=virtio,readonly=on"
    image = write_waiting_guest(directory)
    items = {"opt/org.example/b": b"first"}
    with Machine(image, cpus=2, memory="64M", accel=PLAIN, fw_cfg=items, drives=drive) as machine:
        machine.expect(READY, deadline=GENEROUS)
        with machine.snapshot() as snapshot:
            yield snapshot


def test_a_file_holds_it_all(stopped: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "probe.snapshot"
    stopped.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size < 4 << 20, "zeros take no room"
    with Snapshot.load(path) as loaded:
        path.unlink()
        assert loaded.config == stopped.config
        assert loaded.state == stopped.state
        with Machine.restore(loaded) as restored, Machine.restore(stopped) as same:
            assert answers_as(restored) == answers_as(same)


def test_a_file_takes_the_place_of_files_alone(stopped: Snapshot, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match=r"pipe: no regular file"):
        stopped.save(pipe)
    assert pipe.is_fifo()
    link = tmp_path / "link"
    link.symlink_to("file")
    stopped.save(link)
    assert link.is_symlink()
    with Snapshot.load(tmp_path / "file") as loaded:
        assert loaded.state == stopped.state


def test_a_damaged_file_is_told_in_one_line(stopped: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "probe.snapshot"
    stopped.save(path)
    whole = path.read_bytes()
    moments = random.Random(1)
    places = [0, 16, 24, 40, 60, 90, len(whole) - 1, *(moments.randrange(len(whole)) for _ in range(30))]
    for at in places:
        path.write_bytes(whole[:at] + bytes((whole[at] ^ 0x40,)) + whole[at + 1 :])
        with pytest.raises(ConfigError, match=r"^[^\n]+(damaged|not a snapshot|of format|not all)[^\n]*$"):
            Snapshot.load(path)
    for length in (0, 10, 79, 80, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"not a snapshot|not all"):
            Snapshot.load(path)
    path.write_bytes(whole[:16] + struct.pack("<I", 2) + whole[20:])
    with pytest.raises(ConfigError, match=r"format 2, and this vmm has 1"):
        Snapshot.load(path)
    with pytest.raises(ConfigError, match="cannot read"):
        Snapshot.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state["tsc"].update(khz=12), "counts 12 kHz"),
        (lambda state: state["cpuid"][0].__setitem__(2, 99), "another kind of CPU"),
        (lambda state: state.update(accelerator="kvm+softcpu"), "-accel kvm"),
        (lambda state: state["platform"]["devices"].__setitem__("COM1", [7, {}]), "COM1 is of version 7"),
        (lambda state: state["platform"]["devices"].pop("COM1"), "does not fit"),
        (lambda state: state["fw_cfg"]["counters"].update({"opt/gone": [0] * 5}), "opt/gone"),
    ],
)
def test_what_does_not_fit_is_refused(stopped: Snapshot, tmp_path: Path, change: object, expected: str) -> None:
    path = tmp_path / "probe.snapshot"
    stopped.save(path)
    with Snapshot.load(path) as other:
        assert callable(change)
        change(other.state)
        with pytest.raises(ConfigError, match=expected):
            Machine.restore(other)


class Contents:
    """A file's description, the bytes that it refers to, and its memory; sealed again after each change."""

    def __init__(self, path: Path) -> None:
        whole = path.read_bytes()
        *_, text, blobs, _, _ = snapshot_file._HEADER.unpack_from(whole)
        at = snapshot_file._HEADER.size
        self.text, self.blobs, self.memory = (
            whole[at : at + text],
            whole[at + text :][:blobs],
            whole[at + text + blobs :],
        )
        self.places = list(self._places(json.loads(self.text), ()))

    def _places(self, value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if path:
            yield path
        inside = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
        for key, each in inside:
            yield from self._places(each, (*path, key))

    def changed(self, generator: random.Random) -> bytes:
        """A file with a right checksum that has something else at one place, mostly near the top."""
        tree, blobs = json.loads(self.text), bytearray(self.blobs)
        path = generator.choice(self.places)
        path = path[: generator.randint(1, len(path))]
        if generator.random() < 0.15:
            blobs[generator.randrange(len(blobs))] ^= 1 << generator.randrange(8)
        else:
            around = tree
            for key in path[:-1]:
                around = around[key]
            around[path[-1]] = other_than(around[path[-1]], generator)
        parts = json.dumps(tree).encode(), bytes(blobs), self.memory
        checksum = hashlib.sha256(b"".join(parts)).digest()
        version = snapshot_file.VERSION
        header = snapshot_file._HEADER.pack(snapshot_file.MAGIC, version, 0, *map(len, parts), checksum)
        return header + b"".join(parts)


def other_than(value: Any, generator: random.Random) -> Any:
    others: list[Any] = [None, 0, -1, 1 << 31, 1 << 63, 1 << 70, 1.5, True, "", "\ud800", [], {}, {"bytes": [0, 4]}]
    if isinstance(value, int):
        others += [value + 1, value - 1, value ^ 1 << generator.randrange(64)] * 4
    if isinstance(value, list) and value:
        others += [value[:-1], value + value[-1:], value[::-1]] * 4
    return generator.choice(others)


def test_what_somebody_else_wrote_makes_a_machine_or_is_told_in_one_line(
    stopped: Snapshot, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "other.snapshot"
    stopped.save(path)
    contents = Contents(path)
    refused: list[str] = []
    for seed in range(request.config.getoption("--snapshots")):
        path.write_bytes(contents.changed(random.Random(seed)))
        try:
            with Snapshot.load(path) as snapshot, Machine.restore(snapshot) as restored:
                restored.send("x")
                restored.run(DONE, deadline=0.3)
        except VmmError as error:
            refused.append(str(error))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert refused
    assert not [text for text in refused if "\n" in text]


def test_a_snapshot_names_no_file_to_be_written(stopped: Snapshot, tmp_path: Path) -> None:
    path, taken = tmp_path / "other.snapshot", tmp_path / "taken"
    taken.write_bytes(bytes(1 << 20))
    config = stopped.config._replace(serial=Target.parse(f"file:{taken}", "-serial"), trace=str(taken))
    snapshot_file.write(path, config, stopped.state, stopped.memory)
    with Snapshot.load(path) as loaded, Machine.restore(loaded) as restored:
        answers_as(restored)
    assert taken.read_bytes() == bytes(1 << 20)
    drives = tuple(drive._replace(path=taken, read_only=False) for drive in config.drives)
    snapshot_file.write(path, config._replace(drives=drives), stopped.state, stopped.memory)
    with pytest.raises(ConfigError, match="the guest may write to it"):
        Snapshot.load(path)
    snapshot_file.write(path, config._replace(memory=128 << 20), stopped.state, stopped.memory)
    with pytest.raises(ConfigError, match="ram of 67108864 bytes instead of 134217728"):
        Snapshot.load(path)
