import pytest
from device_rig import MIB, Rig
from hypothesis import given
from hypothesis import strategies as st

from vmm import layout
from vmm.devices.acpi_pm import ICH9, PIIX4, AcpiPm, ApmPorts
from vmm.devices.chipset import Ich9Lpc, Piix4Pm, Q35HostBridge, i440fx_host_bridge, piix3_isa_bridge
from vmm.devices.pci import INTERRUPT_LINE, PciBus, PciConfigPorts, PciFunction
from vmm.devices.pirq import Q35, PirqRouter
from vmm.devices.reset import ResetControl
from vmm.devices.shadow import ShadowArea
from vmm.devices.smram import Smram, boundaries, tseg_boundaries

ADDRESS, DATA = 0xCF8, 0xCFC
ECAM = 0xB000_0000


class PciRig(Rig):
    def __init__(self, ram: int = 16 * MIB, cuts: tuple[int, ...] = ()) -> None:
        super().__init__(ram, cuts)
        self.smis: list[int] = []
        self.pci = PciBus(self.mmio)
        self.pirqs = PirqRouter(Q35, self.sink)
        self.shadow = ShadowArea(self.memory, memoryview(bytearray(0x20000)))
        self.config = PciConfigPorts(self.pci, ResetControl(self.power))
        self.ports.add(ADDRESS, DATA + 3, self.config, "PCI configuration")

    def select(self, device: int, function: int, register: int, bus: int = 0) -> None:
        self.out(ADDRESS, 4, 1 << 31 | bus << 16 | device << 11 | function << 8 | register & 0xFC)

    def read(self, device: int, function: int, register: int, size: int = 4) -> int:
        self.select(device, function, register)
        return self.inp(DATA + (register & 3), size)

    def write(self, device: int, function: int, register: int, size: int, value: int) -> None:
        self.select(device, function, register)
        self.out(DATA + (register & 3), size, value)


def q35_rig() -> PciRig:
    rig = PciRig()
    rig.pci.add(0, 0, Q35HostBridge(rig.shadow, rig.pci, rig.mmio))
    rig.pci.add(
        31, 0, Ich9Lpc(AcpiPm(ICH9, rig.ports, lambda level: rig.irq(9, level), rig.power, rig.clock), rig.pirqs)
    )
    return rig


@pytest.fixture
def q35() -> PciRig:
    return q35_rig()


@pytest.fixture
def pc() -> PciRig:
    rig = PciRig()
    rig.pci.add(0, 0, i440fx_host_bridge(rig.shadow))
    rig.pci.add(1, 0, piix3_isa_bridge(rig.pirqs))
    rig.pci.add(1, 3, Piix4Pm(AcpiPm(PIIX4, rig.ports, lambda level: rig.irq(9, level), rig.power, rig.clock)))
    return rig


def test_config_address_reads_back(q35: PciRig) -> None:
    q35.out(ADDRESS, 4, 0x8000_F844)
    assert q35.inp(ADDRESS, 4) == 0x8000_F844


def test_narrow_accesses_do_not_touch_config_address(q35: PciRig) -> None:
    q35.out(ADDRESS, 4, 0x8000_0000)
    q35.out(ADDRESS, 2, 0x1234)
    q35.outb(ADDRESS, 0x12)
    q35.out(ADDRESS + 1, 2, 0x0606)
    q35.out(ADDRESS + 2, 4, 0x1234_5678)
    q35.out(ADDRESS - 2, 4, 0x1234_5678)
    assert q35.inp(ADDRESS, 4) == 0x8000_0000
    assert [q35.inp(ADDRESS + at, size) for at, size in ((0, 2), (1, 2), (3, 1))] == [0xFFFF, 0xFFFF, 0xFF]
    assert q35.inp(ADDRESS + 2, 4) == 0xFFFF_FFFF, "neither CONFIG_ADDRESS nor CONFIG_DATA"
    assert q35.power.events == []


def test_config_address_holds_what_pci_has_bits_for(q35: PciRig) -> None:
    q35.out(ADDRESS, 4, 0xFFFF_FFFF)
    assert q35.inp(ADDRESS, 4) == 0x80FF_FFFC


def test_string_instructions(q35: PciRig) -> None:
    q35.outs(ADDRESS, 4, bytes.fromhex("60f80080 00f80080"))
    assert q35.ins(ADDRESS, 4, 2) == bytes.fromhex("00f80080") * 2
    assert q35.ins(DATA, 4, 3) == bytes.fromhex("86801829") * 3
    assert q35.ins(DATA + 2, 1, 2) == bytes.fromhex("1818")
    q35.select(31, 0, 0x60)
    q35.outs(DATA + 1, 1, b"\x0a\x0b")
    assert q35.inp(DATA, 4) == 0x8080_0B80
    q35.outs(ADDRESS + 1, 1, b"\x02\x08")
    assert q35.ins(ADDRESS + 1, 1, 2) == b"\x08\x08", "the reset control register"
    assert q35.ins(ADDRESS, 2, 2) == b"\xff" * 4


def test_an_access_across_the_end_of_config_data(q35: PciRig) -> None:
    q35.select(0, 0, 0)
    assert q35.inp(DATA + 2, 4) == 0xFFFF_29C0


@pytest.mark.parametrize(
    ("board", "device", "function", "identity", "class_code"),
    [
        ("q35", 0, 0, 0x29C0_8086, 0x060000),
        ("q35", 31, 0, 0x2918_8086, 0x060100),
        ("pc", 0, 0, 0x1237_8086, 0x060000),
        ("pc", 1, 0, 0x7000_8086, 0x060100),
        ("pc", 1, 3, 0x7113_8086, 0x068000),
    ],
)
def test_identity(
    board: str, device: int, function: int, identity: int, class_code: int, request: pytest.FixtureRequest
) -> None:
    rig: PciRig = request.getfixturevalue(board)
    assert rig.read(device, function, 0) == identity
    assert rig.read(device, function, 2, 2) == identity >> 16
    assert rig.read(device, function, 3, 1) == identity >> 24
    assert rig.read(device, function, 8) >> 8 == class_code
    assert rig.read(device, function, 0x2C) == 0x1100_1AF4


def test_only_the_device_with_several_functions_says_so(pc: PciRig) -> None:
    assert [pc.read(device, 0, 0x0E, 1) for device in (0, 1)] == [0, 0x80]


def test_empty_slots_and_other_buses_read_all_ones(q35: PciRig) -> None:
    assert q35.read(2, 0, 0) == 0xFFFF_FFFF
    assert q35.read(0, 1, 0) == 0xFFFF_FFFF
    q35.select(0, 0, 0, bus=1)
    assert q35.inp(DATA, 4) == 0xFFFF_FFFF
    q35.out(DATA, 4, 0)
    q35.select(2, 0, 0)
    q35.out(DATA, 4, 0)
    assert q35.ins(DATA, 2, 3) == b"\xff" * 6
    assert q35.failures == [], "the functions are not asked"


def test_a_function_that_fails_fails_the_machine(q35: PciRig) -> None:
    class Broken(PciFunction):
        def config_written(self, first: int, last: int) -> None:
            raise RuntimeError(f"registers {first:#x} to {last:#x}")

    q35.pci.add(3, 1, Broken(0x1234, 0x5678, 0))
    assert q35.read(3, 1, 0) == 0x5678_1234
    q35.write(3, 1, INTERRUPT_LINE, 1, 5)
    assert [repr(failure) for failure in q35.failures] == ["RuntimeError('registers 0x3c to 0x3c')"]


def test_data_port_without_enable_bit_is_nobody(q35: PciRig) -> None:
    q35.out(ADDRESS, 4, 0)
    assert q35.inp(DATA, 4) == 0xFFFF_FFFF


def test_identity_and_bars_are_read_only(q35: PciRig) -> None:
    for register in (0x00, 0x08, 0x0C, *range(0x10, 0x3C, 4)):
        before = q35.read(0, 0, register)
        q35.write(0, 0, register, 4, 0xFFFF_FFFF)
        assert q35.read(0, 0, register) == before
    assert q35.read(0, 0, 0x10) == 0, "a BAR of size 0 is no BAR"


def test_single_bytes_of_a_register_can_be_written(q35: PciRig) -> None:
    q35.write(31, 0, 0x60, 4, 0x0B0B_0A0A)
    q35.write(31, 0, 0x62, 1, 0x05)
    assert q35.read(31, 0, 0x60) == 0x0B05_0A0A


def test_pirqs_are_unrouted_at_power_on(q35: PciRig, pc: PciRig) -> None:
    assert q35.read(31, 0, 0x60) == q35.read(31, 0, 0x68) == pc.read(1, 0, 0x60) == 0x8080_8080


def test_ecam_appears_where_pciexbar_puts_it(q35: PciRig) -> None:
    assert q35.load(ECAM, 4) == 0xFFFF_FFFF
    q35.write(0, 0, 0x64, 4, 0)
    q35.write(0, 0, 0x60, 4, ECAM | 1)
    assert q35.load(ECAM, 4) == 0x29C0_8086
    assert q35.load(ECAM + (31 << 15), 2) == 0x8086
    assert q35.load(ECAM + (1 << 20), 4) == 0xFFFF_FFFF
    assert q35.load(ECAM + 0x100, 4) == 0xFFFF_FFFF, "a conventional function has no extended space"
    q35.store(ECAM + (31 << 15) + 0x60, 1, 0x0A)
    assert q35.read(31, 0, 0x60, 1) == 0x0A
    q35.write(0, 0, 0x60, 4, 0xE000_0001)
    assert q35.load(ECAM, 4) == 0xFFFF_FFFF
    assert q35.load(0xE000_0000, 4) == 0x29C0_8086
    q35.write(0, 0, 0x60, 1, 0)
    assert q35.load(0xE000_0000, 4) == 0xFFFF_FFFF


@given(
    function=st.sampled_from([(0, 0), (31, 0), (31, 1), (2, 0)]),
    register=st.one_of(st.integers(0, 0x110), st.integers(0xFF8, 0xFFF)),
    size=st.integers(1, 8),
)
def test_any_access_to_ecam(function: tuple[int, int], register: int, size: int) -> None:
    rig = q35_rig()
    rig.write(0, 0, 0x60, 4, ECAM | 1)
    there = {where: bytes(what.config) for where, what in rig.pci.functions().items()}
    gpa = ECAM + (function[0] << 15) + (function[1] << 12) + register
    expected = there.get(function, b"")[register : register + size].ljust(size, b"\xff")
    assert rig.load(gpa, size).to_bytes(size, "little") == expected
    rig.store(gpa, size, rig.load(gpa, size))
    assert {where: bytes(what.config) for where, what in rig.pci.functions().items()} == there
    assert rig.failures == []


def test_ecam_length_limits_it(q35: PciRig) -> None:
    q35.write(0, 0, 0x60, 4, ECAM | 2 << 1 | 1)
    assert [r.last - r.first + 1 for r in q35.mmio.ranges()] == [64 << 20]
    q35.write(0, 0, 0x60, 4, ECAM | 3 << 1 | 1)
    assert q35.mmio.ranges() == []


def test_ecam_over_another_device_stays_away(q35: PciRig) -> None:
    q35.mmio.add(0xB000_1000, 0xB000_1FFF, ResetControl(q35.power), "in the way")
    q35.write(0, 0, 0x60, 4, ECAM | 1)
    assert [r.name for r in q35.mmio.ranges()] == ["in the way"]
    q35.mmio.remove(0xB000_1000)
    q35.write(0, 0, 0x60, 4, ECAM | 1)
    assert [r.name for r in q35.mmio.ranges()] == ["ECAM"]


def test_ich9_acpi_block_moves(q35: PciRig) -> None:
    q35.write(31, 0, 0x40, 4, 0x600)
    assert q35.read(31, 0, 0x40) == 0x601
    assert q35.inp(0x604, 2) == 0xFFFF, "not enabled yet"
    q35.write(31, 0, 0x44, 1, 0x80)
    assert q35.inp(0x604, 2) == 0
    timer = q35.inp(0x608, 4)
    assert timer < 1 << 24
    q35.write(31, 0, 0x40, 4, 0xB000)
    assert q35.inp(0x604, 2) == 0xFFFF
    assert q35.inp(0xB004, 2) == 0
    assert q35.inp(0xB008, 4) >= timer
    q35.write(31, 0, 0x44, 1, 0)
    assert q35.inp(0xB008, 4) == 0xFFFF_FFFF


def test_piix4_acpi_block_moves(pc: PciRig) -> None:
    pc.write(1, 3, 0x40, 4, 0xB001)
    pc.write(1, 3, 0x80, 1, 1)
    assert pc.inp(0xB008, 4) < 1 << 24
    assert pc.read(1, 3, 0x58) >> 25 & 1, "SMM is set up already"


def test_acpi_block_over_another_device_stays_away(q35: PciRig) -> None:
    q35.write(31, 0, 0x44, 1, 0x80)
    q35.write(31, 0, 0x40, 4, 0xC80)
    assert q35.read(31, 0, 0, 4) == 0x2918_8086, "CONFIG_ADDRESS at 0xcf8 still answers"
    assert [r.first for r in q35.ports.ranges()] == [ADDRESS]
    q35.write(31, 0, 0x40, 4, 0x600)
    assert q35.inp(0x600, 4) == 0


def test_registers_of_memory_that_only_smm_has_read_as_zero(q35: PciRig) -> None:
    q35.write(0, 0, 0x50, 2, 0xFFFF)
    q35.write(0, 0, 0x9C, 4, 0xFFFF_FFFF)
    assert q35.read(0, 0, 0x50, 2) == 0
    assert q35.read(0, 0, 0x9D, 2) == 0


RAM = 64 * MIB
SMRAM, ESMRAMC = 0x9D, 0x9E
ONES = 0xFFFF_FFFF


@pytest.fixture
def with_smm() -> PciRig:
    rig = PciRig(RAM, tseg_boundaries(RAM))
    rig.pci.add(0, 0, Q35HostBridge(rig.shadow, rig.pci, rig.mmio, Smram(rig.memory, RAM)))
    pm = AcpiPm(ICH9, rig.ports, lambda _: None, rig.power, rig.clock, lambda: rig.smis.append(1))
    rig.pci.add(31, 0, Ich9Lpc(pm, rig.pirqs))
    rig.ports.add(0xB2, 0xB3, ApmPorts(pm), "APM")
    for mib in (1, 2, 8, 16):
        rig.store(RAM - mib * MIB, 4, 0x1111_1111 * (mib % 9))
    return rig


def in_smm(rig: PciRig) -> set[tuple[int, int]]:
    """What the mode alone sees: addresses and sizes."""
    memory = rig.core.memory
    return {(memory.smm_regions[i].gpa, memory.smm_regions[i].size) for i in range(memory.smm_count)}


@pytest.mark.parametrize(("bits", "size"), [(0, 1), (2, 2), (4, 8), (6, 16)])
def test_tseg_is_hidden_from_all_but_smm(with_smm: PciRig, bits: int, size: int) -> None:
    rig = with_smm
    rig.write(0, 0, ESMRAMC, 1, bits | 1)
    assert rig.load(RAM - 4, 4) != ONES, "not before G_SMRAME"
    rig.write(0, 0, SMRAM, 1, 0x08)
    for mib in (1, 2, 8, 16):
        assert (rig.load(RAM - mib * MIB, 4) == ONES) is (mib <= size)
    rig.store(RAM - 4, 4, 0)
    assert in_smm(rig) == {(0xA0000, 0x20000), (RAM - size * MIB, size * MIB)}
    rig.write(0, 0, ESMRAMC, 1, 0)
    assert [rig.load(RAM - mib * MIB, 4) for mib in (1, 2, 8)] == [0x1111_1111, 0x2222_2222, 0x8888_8888]
    assert in_smm(rig) == {(0xA0000, 0x20000)}


@pytest.mark.parametrize("high", [0, 0x80])
def test_smram_is_open_then_closed_then_locked(with_smm: PciRig, high: int) -> None:
    rig = with_smm
    place, other = (0xFEDA_0000, 0xA0000) if high else (0xA0000, 0xFEDA_0000)
    rig.write(0, 0, ESMRAMC, 1, high)
    rig.write(0, 0, SMRAM, 1, 0x48)
    rig.store(place + 8, 4, 0x1234_5678)
    assert rig.load(place + 8, 4) == 0x1234_5678
    assert rig.load(other + 8, 4) == ONES
    assert in_smm(rig) == set()
    rig.write(0, 0, SMRAM, 1, 0x08)
    assert rig.load(place + 8, 4) == ONES
    assert in_smm(rig) == {(place, 0x20000)}
    rig.write(0, 0, SMRAM, 1, 0x58)
    assert rig.read(0, 0, SMRAM, 1) == 0x1A, "D_LCK clears D_OPEN"
    rig.write(0, 0, SMRAM, 2, 0)
    rig.write(0, 0, SMRAM, 1, 0x48)
    assert rig.read(0, 0, SMRAM, 2) == 0x1A | (0x38 | high) << 8
    assert in_smm(rig) == {(place, 0x20000)}
    state = rig.pci.state()
    rig.pci.reset()
    assert rig.read(0, 0, SMRAM, 2) == 0x3802
    assert in_smm(rig) == set()
    rig.pci.restore(state)
    assert in_smm(rig) == {(place, 0x20000)}
    rig.write(0, 0, SMRAM, 1, 0x48)
    assert rig.read(0, 0, SMRAM, 1) == 0x1A, "a restored lock locks"


def test_a_wake_up_from_s3_opens_what_was_locked_and_keeps_the_rest(with_smm: PciRig) -> None:
    rig = with_smm
    for devfn, register, value in (
        (0, 0x90, 0x30),
        (0, ESMRAMC, 7),
        (0, SMRAM, 0x1A),
        (31, 0x40, 0x600),
        (31, 0x44, 0x80),
    ):
        rig.write(devfn, 0, register, 2 if register == 0x40 else 1, value)
    rig.write(31, 0, 0xA0, 1, 0x10)
    rig.pci.wake_up()
    assert rig.read(0, 0, SMRAM, 2) == 0x3802
    assert in_smm(rig) == set()
    assert rig.load(RAM - 16 * MIB, 4) == 0x7777_7777
    rig.write(0, 0, ESMRAMC, 1, 1)
    rig.write(0, 0, SMRAM, 1, 0x08)
    assert in_smm(rig) == {(0xA0000, 0x20000), (RAM - MIB, MIB)}
    assert rig.read(0, 0, 0x90, 1) == 0x30
    rig.write(31, 0, 0xA0, 1, 0)
    rig.out(0x630, 4, 1)
    assert rig.inp(0x630, 4) == 1, "GBL_SMI_EN can be set again, at the port where it was"
    rig.out(0x630, 4, 0)
    assert rig.inp(0x630, 4) == 0


def test_a_tseg_that_is_larger_than_ram_is_none() -> None:
    assert tseg_boundaries(16 * MIB) == tuple(16 * MIB - size * MIB for size in (8, 2, 1))
    rig = PciRig(16 * MIB, tseg_boundaries(16 * MIB))
    rig.pci.add(0, 0, Q35HostBridge(rig.shadow, rig.pci, rig.mmio, Smram(rig.memory, 16 * MIB)))
    rig.write(0, 0, ESMRAMC, 1, 7)
    rig.write(0, 0, SMRAM, 1, 0x08)
    assert rig.load(16 * MIB - 4, 4) == 0
    assert in_smm(rig) == {(0xA0000, 0x20000)}


def with_default_smbase() -> PciRig:
    rig = PciRig(RAM, boundaries(RAM, plugging=True))
    rig.pci.add(0, 0, Q35HostBridge(rig.shadow, rig.pci, rig.mmio, Smram(rig.memory, RAM, plugging=True)))
    rig.store(0x30000, 4, 0x3333_3333)
    return rig


def test_the_default_smbase_is_hidden_from_all_but_smm_until_a_reset() -> None:
    rig = with_default_smbase()
    rig.write(0, 0, 0x9C, 1, 0x02)
    assert (rig.read(0, 0, 0x9C, 1), in_smm(rig)) == (0, set()), "nobody has asked for it"
    rig.write(0, 0, 0x9C, 1, 0xFF)
    assert (rig.read(0, 0, 0x9C, 1), rig.load(0x30000, 4)) == (1, 0x3333_3333)
    rig.write(0, 0, 0x9C, 1, 0x02)
    for value in (2, 0, 0xFF):
        rig.write(0, 0, 0x9C, 1, value)
        assert (rig.read(0, 0, 0x9C, 1), in_smm(rig)) == (2, {(0x30000, 0x20000)})
    rig.store(0x30000, 4, 0)
    assert [rig.load(gpa, 4) for gpa in (0x2FFFC, 0x30000, 0x4FFFC, 0x50000)] == [0, ONES, ONES, 0]
    copy = with_default_smbase()
    copy.pci.restore(rig.pci.state())
    copy.write(0, 0, 0x9C, 1, 0)
    assert (copy.read(0, 0, 0x9C, 1), in_smm(copy)) == (2, {(0x30000, 0x20000)})
    for restart in (rig.pci.reset, copy.pci.wake_up):
        restart()
    for each in (rig, copy):
        assert (each.read(0, 0, 0x9C, 1), each.load(0x30000, 4), in_smm(each)) == (0, 0x3333_3333, set())


def test_apm_control_sends_smis_and_the_lock_keeps_them_on(with_smm: PciRig) -> None:
    rig = with_smm
    sent = rig.smis
    rig.write(31, 0, 0x40, 4, 0x600)
    rig.write(31, 0, 0x44, 1, 0x80)
    assert rig.inp(0x630, 4) == 0
    rig.outb(0xB2, 0x44)
    assert sent == []
    rig.out(0x630, 4, 0x21)
    rig.out(0xB2, 2, 0x5544)
    assert sent == [1]
    assert rig.inp(0xB2, 2) == 0x5544
    for acpi in (2, 3):
        rig.outb(0xB2, acpi)
    rig.outb(0xB3, 0x44)
    assert sent == [1], "these are no requests"
    assert rig.inp(0x634, 4) == 0
    rig.write(31, 0, 0xA0, 1, 0x10)
    rig.out(0x630, 4, 0)
    assert rig.inp(0x630, 4) == 1
    rig.write(31, 0, 0xA0, 1, 0)
    assert rig.read(31, 0, 0xA0, 1) == 0x10
    rig.pci.reset()
    rig.write(31, 0, 0xA0, 1, 0xEF)
    assert rig.read(31, 0, 0xA0, 1) == 0xEF


def test_reset_restores_registers_and_decoding(q35: PciRig) -> None:
    q35.write(0, 0, 0x60, 4, ECAM | 1)
    q35.write(31, 0, 0x40, 4, 0x600)
    q35.write(31, 0, 0x44, 1, 0x80)
    q35.pci.reset()
    q35.config.reset()
    assert q35.inp(ADDRESS, 4) == 0
    assert q35.mmio.ranges() == []
    assert [r.name for r in q35.ports.ranges()] == ["PCI configuration"]
    assert q35.read(31, 0, 0x40) == 1


def test_reset_control_inside_the_config_ports(q35: PciRig) -> None:
    q35.outb(layout.PORT_PCI_CONFIG.start + 1, 0x02)
    assert q35.inb(0xCF9) == 0x02
    assert q35.power.events == []
    q35.outb(0xCF9, 0x06)
    assert q35.power.events == ["reset: port 0xcf9 <- 0x06"]
