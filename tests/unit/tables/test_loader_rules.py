"""The interpreter: what OVMF and SeaBIOS make of good scripts and of each broken one."""

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.tables import acpi, loader_rules
from vmm.tables.acpi_tables import AcpiDescription, Oem, table
from vmm.tables.files import LOADER_FILE, WRITABLE_FILES
from vmm.tables.loader_result import LoaderResult, Rules
from vmm.tables.table_loader import AddChecksum, AddPointer, Allocate, WritePointer, Zone

RSDP, TABLES = "etc/acpi/rsdp", "etc/acpi/tables"
Command = Allocate | AddPointer | AddChecksum | WritePointer
Commands = Sequence[Command | bytes]
BOTH = pytest.mark.parametrize("rules", list(Rules))


def run(commands: Commands, files: dict[str, bytes], rules: Rules = Rules.OVMF, **keywords: Any) -> LoaderResult:
    script = b"".join(command if isinstance(command, bytes) else command.encode() for command in commands)
    return loader_rules.run(script, files, rules, **keywords)


def published(description: AcpiDescription) -> dict[str, bytes]:
    return acpi.build_acpi(description)


def load(*names: str, zone: Zone = Zone.HIGH) -> list[Command]:
    return [Allocate(name, 64, zone) for name in names]


@BOTH
@pytest.mark.parametrize(
    "machine",
    [
        AcpiDescription(),
        AcpiDescription(cpus=3, max_cpus=8, hpet_base=0xFED00000, vmgenid=bytes(range(16))),
        AcpiDescription(cpus=300, express=False, ecam_base=None, pm_base=0xB000),
        AcpiDescription(user_tables=(table("SSDT", 2, b"", Oem()), table("OEM1", 1, b"data", Oem()))),
    ],
)
def test_our_own_tables_are_all_accepted(machine: AcpiDescription, rules: Rules) -> None:
    files = published(machine)
    result = loader_rules.run(files[LOADER_FILE], files, rules, writable=WRITABLE_FILES)
    assert result.ok, result.reason
    assert not result.failures
    accepted = sorted(found.signature for found in result.tables if found.accepted)
    expected = ["APIC", "DSDT", "FACP", "FACS", "WAET"]
    expected += ["MCFG"] if machine.ecam_base else []
    expected += ["HPET"] if machine.hpet_base else []
    expected += ["SSDT"] if machine.vmgenid else []
    expected += [user[:4].decode() for user in machine.user_tables]
    assert accepted == sorted(expected)


@BOTH
def test_pointers_and_checksums_end_up_right(rules: Rules) -> None:
    files = published(AcpiDescription())
    bases = {RSDP: 0xF5A00, TABLES: 0x7FF0000}
    result = loader_rules.run(files[LOADER_FILE], files, rules, bases=bases)
    rsdp = result.blobs[RSDP].data
    assert sum(rsdp[:20]) % 256 == 0
    assert sum(rsdp) % 256 == 0
    rsdt, xsdt = struct.unpack_from("<I", rsdp, 16)[0], struct.unpack_from("<Q", rsdp, 24)[0]
    data = result.blobs[TABLES].data
    assert data[rsdt - 0x7FF0000 :][:4] == b"RSDT"
    assert data[xsdt - 0x7FF0000 :][:4] == b"XSDT"
    narrow = struct.unpack_from("<4I", data, rsdt - 0x7FF0000 + 36)
    wide = struct.unpack_from("<4Q", data, xsdt - 0x7FF0000 + 36)
    assert narrow == wide
    assert data[narrow[0] - 0x7FF0000 :][:4] == b"FACP"


@BOTH
def test_vmgenid_address_is_written_for_the_host(rules: Rules) -> None:
    files = published(AcpiDescription(vmgenid=bytes(range(16))))
    bases = {"etc/vmgenid_guid": 0x7E000000}
    result = loader_rules.run(files[LOADER_FILE], files, rules, writable=WRITABLE_FILES, bases=bases)
    assert result.written == {"etc/vmgenid_addr": struct.pack("<Q", 0x7E000028)}
    assert not result.blobs["etc/vmgenid_guid"].only_tables


def test_write_pointer_needs_dma_and_a_writable_item() -> None:
    files = published(AcpiDescription(vmgenid=bytes(range(16))))
    script = files[LOADER_FILE]
    assert "offers no DMA" in loader_rules.run(script, files, Rules.OVMF, dma=False).reason
    assert "read-only" in loader_rules.run(script, files, Rules.OVMF).reason
    seabios = loader_rules.run(script, files, Rules.SEABIOS)
    assert seabios.ok
    assert [str(step.command)[:13] for step in seabios.failures] == ["WRITE_POINTER"]


ACPI_TABLE = table("OEM1", 1, b"payload!", Oem())


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ([Allocate("none", 64, 1)], "no fw_cfg file none"),
        ([Allocate("t", 8192, 1)], "alignment 8192"),
        ([*load("t"), *load("t")], "duplicate ALLOCATE of t"),
        ([*load("empty")], "empty is empty"),
        ([*load("t"), AddPointer("t", "p", 0, 4)], "p was not allocated"),
        ([*load("p", "t"), AddPointer("p", "t", 6, 4)], "outside p"),
        ([*load("p", "t"), AddPointer("p", "t", 0, 3)], "pointer size 3"),
        ([*load("far", "t"), AddPointer("far", "t", 0, 4)], "value 0x1000 points outside t"),
        ([*load("p", "t"), AddPointer("p", "t", 0, 2)], "does not fit into 2 bytes"),
        ([*load("t"), AddChecksum("t", 44, 0, 44)], "outside t"),
        ([*load("t"), AddChecksum("t", 9, 40, 8)], "outside t"),
        ([*load("t"), AddChecksum("p", 9, 0, 8)], "p was not allocated"),
        ([*load("t"), WritePointer("none", "t", 0, 0, 8)], "no fw_cfg file none"),
        ([*load("t"), WritePointer("p", "t", 4, 0, 8)], "outside p"),
        ([*load("t"), WritePointer("p", "t", 0, 44, 8)], "offset 0x2c is outside t"),
    ],
)
def test_ovmf_stops_at_the_first_failure_and_says_why(commands: Commands, reason: str) -> None:
    files = {"t": ACPI_TABLE, "p": bytes(8), "far": b"\0\x10\0\0", "empty": b""}
    result = run([*commands, *load("p")], files, writable={"p"})
    assert not result.ok
    assert reason in result.reason
    assert len(result.steps) == len(commands)
    assert not result.steps[-1].ok
    assert not result.tables


def test_seabios_skips_what_fails_and_goes_on() -> None:
    files = published(AcpiDescription())
    broken = Allocate("none", 64, 1).encode() + files[LOADER_FILE] + AddPointer(TABLES, "none", 0, 4).encode()
    result = run([broken], files, Rules.SEABIOS)
    assert result.ok
    assert [step.reason for step in result.failures] == ["no fw_cfg file none", "none was not allocated"]
    assert "FACP" in {found.signature for found in result.tables if found.accepted}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (Allocate("t", 48, 1), "alignment 48 is not a power of two"),
        (Allocate("t", 64, 7), "zone 7"),
    ],
)
def test_what_only_seabios_refuses(command: Allocate, reason: str) -> None:
    assert run([command], {"t": ACPI_TABLE}, Rules.SEABIOS).failures[0].reason.startswith(reason)
    assert not run([command], {"t": ACPI_TABLE}, Rules.OVMF).failures


def test_a_pointer_outside_its_file_is_relocated_all_the_same_by_seabios() -> None:
    files = {"p": struct.pack("<I", 0x1000), "t": ACPI_TABLE}
    result = run([*load("p", "t"), AddPointer("p", "t", 0, 4)], files, Rules.SEABIOS, bases={"t": 0x100000})
    assert struct.unpack("<I", result.blobs["p"].data) == (0x101000,)


def test_the_firmwares_disagree_on_a_checksum_byte_that_is_not_zero() -> None:
    """OVMF stores minus the sum of all, SeaBIOS subtracts: right is what sums to 0."""
    damaged = bytearray(ACPI_TABLE)
    damaged[9] = 0x55
    commands = [*load("t"), AddChecksum("t", 9, 0, 44)]
    seabios = run(commands, {"t": bytes(damaged)}, Rules.SEABIOS).blobs["t"].data
    ovmf = run(commands, {"t": bytes(damaged)}, Rules.OVMF).blobs["t"].data
    assert sum(seabios) % 256 == 0
    assert sum(ovmf) % 256 == 0x100 - 0x55


def pointed_at(content: bytes) -> LoaderResult:
    commands = [*load("p", "t"), AddPointer("p", "t", 0, 8)]
    return run(commands, {"p": bytes(8), "t": content})


def test_second_pass_installs_a_good_table() -> None:
    result = pointed_at(ACPI_TABLE)
    assert result.ok
    assert [(found.signature, found.accepted) for found in result.tables] == [("OEM1", True)]
    assert result.blobs["t"].only_tables


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ((9, 0xFF), "checksum is wrong"),
        ((4, 200), "length 0xc8 is not within"),
        ((4, 35), "length 0x23 is not within"),
    ],
)
def test_second_pass_silently_drops_a_bad_table(patch: tuple[int, int], reason: str) -> None:
    damaged = bytearray(ACPI_TABLE)
    damaged[patch[0]] = patch[1]
    result = pointed_at(bytes(damaged))
    assert result.ok
    assert not result.tables[0].accepted
    assert reason in result.tables[0].reason
    assert not result.blobs["t"].only_tables


def test_second_pass_drops_what_is_too_short_for_a_header() -> None:
    assert "only 8 bytes are left" in pointed_at(bytes(8)).tables[0].reason


def test_second_pass_skips_root_tables_and_probes_each_target_once() -> None:
    root = table("XSDT", 1, bytes(8), Oem())
    commands = [*load("p", "t"), AddPointer("p", "t", 0, 8), AddPointer("p", "t", 8, 8)]
    result = run(commands, {"p": bytes(16), "t": root})
    assert [found.reason for found in result.tables] == ["OVMF builds its own"]


@pytest.mark.parametrize(("count", "good"), [(128, True), (129, False)])
def test_second_pass_has_room_for_128_tables(count: int, good: bool) -> None:
    files = {"p": b"".join(struct.pack("<Q", len(ACPI_TABLE) * index) for index in range(count))}
    files["t"] = ACPI_TABLE * count
    commands = load("p", "t") + [AddPointer("p", "t", 8 * index, 8) for index in range(count)]
    result = run(commands, files)
    assert result.ok == good
    assert good or "more than 128 tables" in result.reason
    # Other firmware takes them all.
    assert len(result.tables) == count


def test_second_pass_refuses_a_second_dsdt() -> None:
    dsdt = table("DSDT", 2, b"", Oem())
    commands = [*load("p", "t", "u"), AddPointer("p", "t", 0, 8), AddPointer("p", "u", 8, 8)]
    result = run(commands, {"p": bytes(16), "t": dsdt, "u": dsdt})
    assert not result.ok
    assert "a second DSDT" in result.reason


def test_roll_back_zeroes_what_was_written() -> None:
    commands = [*load("t"), WritePointer("p", "t", 0, 0, 8), Allocate("none", 1, 1)]
    result = run(commands, {"p": b"\xff" * 8, "t": ACPI_TABLE}, writable={"p"})
    assert not result.ok
    assert result.written == {"p": bytes(8)}


@BOTH
def test_a_script_of_a_wrong_size_is_refused_whole(rules: Rules) -> None:
    result = run([bytes(127)], {}, rules)
    assert not result.ok
    assert "127 bytes" in result.reason


@BOTH
def test_padding_is_skipped(rules: Rules) -> None:
    files = published(AcpiDescription())
    result = run([files[LOADER_FILE] + bytes(256)], files, rules)
    assert result.ok
    assert not result.failures


def test_seabios_without_an_rsdp_in_the_f_segment() -> None:
    files = published(AcpiDescription())
    script = files[LOADER_FILE]
    high = Allocate(RSDP, 16, Zone.HIGH).encode() + script[128:]
    assert "no RSDP in the F segment" in run([high], files, Rules.SEABIOS).reason
    assert run([high], files, Rules.OVMF).ok


def test_seabios_names_a_root_table_that_fails() -> None:
    files = dict(published(AcpiDescription()))
    script = files[LOADER_FILE]
    without_last_sums = script[: -2 * 128]
    assert "RSDP in etc/acpi/rsdp has a wrong checksum" in run([without_last_sums], files, Rules.SEABIOS).reason


FIELD = st.one_of(st.integers(0, 64), st.just(0xFFFFFFFF))
NAME = st.sampled_from(["p", "t", "none"])


@BOTH
@given(
    commands=st.lists(
        st.one_of(
            st.builds(Allocate, NAME, FIELD, st.integers(0, 3)),
            st.builds(AddPointer, NAME, NAME, FIELD, st.integers(0, 9)),
            st.builds(AddChecksum, NAME, FIELD, FIELD, FIELD),
            st.builds(WritePointer, NAME, NAME, FIELD, FIELD, st.integers(0, 9)),
            st.binary(min_size=128, max_size=128),
        ),
        max_size=12,
    ),
)
def test_no_script_raises_and_files_keep_their_sizes(rules: Rules, commands: Commands) -> None:
    files = {"p": bytes(64), "t": ACPI_TABLE}
    result = run(commands, files, rules, writable={"p"})
    assert result.ok or result.reason
    for file, blob in result.blobs.items():
        assert len(blob.data) == len(files[file])
