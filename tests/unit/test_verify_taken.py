"""What OVMF says of what it boots, as `vmm verify` understands it."""

import re

from vmm.verify.taken import UEFI_END, Attempt, of_uefi

DISK = "PciRoot(0x0)/Pci(0x1F,0x0)"
STARTING = f'BdsDxe: starting Boot0002 "UEFI Misc Device 2" from {DISK}'
FAILED = 'BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x3,0x0): Not Found'
SAID = f'BdsDxe: loading Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x3,0x0)\r\n{FAILED}\r\n{STARTING}\r\nmore'


def test_attempts_in_order() -> None:
    assert of_uefi(SAID) == [
        Attempt("UEFI Misc Device", ("pci(0x3,0x0)",), "failed to load"),
        Attempt("UEFI Misc Device 2", ("pci(0x1f,0x0)",)),
    ]
    assert of_uefi("") == []


def test_a_path_that_is_still_being_printed_is_no_end() -> None:
    for end in range(len(STARTING) + 1):
        assert re.search(UEFI_END, STARTING[:end]) is None
    assert re.search(UEFI_END, f"{STARTING}\n")
    assert re.search(UEFI_END, f"{FAILED}\n") is None
