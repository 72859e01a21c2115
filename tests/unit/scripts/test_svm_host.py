"""What scripts/test-svm-host makes of a run that did not come to its end."""

from pathlib import Path
from xml.etree import ElementTree as ET

from svm_host.partial import write_junit

CONSOLE = """\
tests/kvm/api/test_machine.py::test_one PASSED [ 25%]
tests/kvm/api/test_machine.py::test_two[a b] kvm_amd: a line of the kernel's
FAILED [ 50%]
tests/kvm/api/test_machine.py::test_three SKIPPED (why) [ 75%]
tests/kvm/api/test_machine.py::test_four """


def suite(directory: Path, console: str) -> ET.Element:
    (directory / "console.txt").write_text(console, encoding="utf-8")
    write_junit(directory / "console.txt", directory / "junit.xml", "stalled")
    found = ET.parse(directory / "junit.xml").getroot().find("testsuite")  # noqa: S314 - ours
    assert found is not None
    return found


def test_ended_tests_have_their_verdict_and_the_running_one_is_an_error(tmp_path: Path) -> None:
    found = suite(tmp_path, CONSOLE)
    cases = {case.get("name"): [part.tag for part in case] for case in found}
    assert cases == {"test_one": [], "test_two[a b]": ["failure"], "test_three": ["skipped"], "test_four": ["error"]}
    assert {name: found.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }


def test_no_test_had_started(tmp_path: Path) -> None:
    found = suite(tmp_path, "a kernel that panics\n")
    assert found.get("tests") == "0"
    assert len(found) == 0
