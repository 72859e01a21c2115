"""mypy finds what is wrong in a program that uses vmm, and nothing else."""

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_type_hints
from uuid import UUID

from vmm import MachineConfig, MachineOptions, inputs
from vmm.config import cpu_model, debugger, items, numa, option_roms, parts, topology
from vmm.disks import drives
from vmm.firmware import images
from vmm.tables import acpi_user, boot_order, e820, smbios_options

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("cases.py")
KINDS = {"error": "E", "note": "N"}


def test_mypy_says_what_the_cases_expect() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-codes", "--no-color-output", str(CASES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [
        f"{number}: {KINDS[kind]}: {text.partition('; did you mean')[0]}"
        for number, kind, text in re.findall(r"cases\.py:(\d+): (error|note): (.*)", run.stdout)
        if " defined in " not in text
    ]
    expected = [
        f"{number}: {match[1]}"
        for number, line in enumerate(CASES.read_text().splitlines(), 1)
        if (match := re.search(r"# ([EN]: .*)", line))
    ]
    assert found == expected, run.stdout + run.stderr


def test_a_machine_takes_the_keywords_of_its_config_all_of_them_with_the_same_types() -> None:
    # The names in the annotations are those of modules that are imported only for type checkers.
    names = {"Iterable": Iterable, "Mapping": Mapping, "Sequence": Sequence, "UUID": UUID}
    own = (cpu_model, debugger, items, numa, option_roms, parts, topology)
    for module in (acpi_user, boot_order, drives, e820, images, inputs, *own, smbios_options):
        names |= vars(module)
    options = get_type_hints(MachineOptions, None, names)
    create = get_type_hints(MachineConfig._create, None, names)
    assert {name: hint | None for name, hint in create.items() if name not in {"return", "firmware"}} == options
