"""Keep what benchmarks found for each release, and say which ratios got worse: `scripts/bench history`.

Every result of `vmm bench … --json` that is given is kept under its release in docs/benchmarks.json: host facts,
medians, and ratios next to the floor (the bare loop) and to rivals (QEMU), with their intervals. The table in
docs/benchmarks.md is made of that, for the ratios that vmm is held to. A ratio got worse, or better, where its interval
and that of the release before, on the same kind of host, have nothing in common; anything else may be noise.

usage: scripts/bench history [--release NAME] [RESULT.json ...]     NAME: the version, if none is given

Without results it compares the last release of each kind of benchmark with the one before. Exit status: 0; 1 if a ratio
got worse; 2 for a file that is no such result.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- made by scripts/bench history -->", "<!-- until here -->"

SCHEMA = "vmm-bench/1"
RIVALS = ("bare-loop", "qemu-kvm", "qemu-tcg")
MIN_ROUNDS = 6
"""As in vmm/statistics.py: fewer have no interval."""

SAME_HOST = ("cpu", "cpus", "virtualization", "kvm_module")
"""Facts that must agree for two results to be compared. A kernel may be newer: that is said."""

COLUMNS = 4
"""Releases that the table shows, the last ones."""


@dataclass(frozen=True)
class Change:
    """A ratio that two releases do not agree on.

    Attributes:
        what: benchmark, case and rival, for people.
        before: median, low and high end.
        now: likewise.
    """

    what: str
    before: tuple[float, float, float]
    now: tuple[float, float, float]

    @property
    def worse(self) -> bool:
        """Whether vmm needs more now."""
        return self.now[1] > self.before[2]

    def __str__(self) -> str:
        return f"{'worse' if self.worse else 'better'}: {self.what}: {_words(self.before)}, now {_words(self.now)}"


def entry(result: dict[str, Any], release: str) -> dict[str, Any]:
    """Return what is kept of a result.

    Raises:
        ValueError: it is none.
    """
    if result.get("schema") != SCHEMA:
        raise ValueError(f"no result of vmm bench: schema {result.get('schema')!r}, not {SCHEMA!r}")
    cases = {
        case["key"]: {
            "title": case["title"],
            "unit": case["unit"],
            "medians": {key: _short(measured["summary"]["median"]) for key, measured in case["measured"].items()},
            "ratios": {
                pair["to"]: [
                    *(_short(pair["ratio"][key]) for key in ("median", "low", "high")),
                    pair["ratio"]["rounds"],
                ]
                for pair in case["ratios"]
                if pair["of"] == "vmm" and pair["to"] in RIVALS
            },
        }
        for case in result["cases"]
    }
    held = [[target["case"], target["to"], target["text"], target["limit"]] for target in result["targets"]]
    return {
        "release": release,
        "kind": result["kind"],
        "mode": result["settings"].get("mode"),
        "date": result["began"][:10],
        "rounds": result["rounds"],
        "host": result["host"] | {"kernel": result["host"]["kernel"].partition("-")[0]},
        "noise": result["warnings"],
        "held": [target for target in held if target[1] in RIVALS],
        "cases": cases,
    }


def keep(history: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Add an entry, in the place of one of the same release, kind and host."""
    history[:] = [old for old in history if old["release"] != new["release"] or not _comparable(old, new)]
    history.append(new)


def changes(history: Sequence[dict[str, Any]]) -> Iterator[Change]:
    """Yield what differs between the last two releases of each kind on each host."""
    for now in _last(history):
        before = next(
            (old for old in reversed(history) if old["release"] != now["release"] and _comparable(old, now)), None
        )
        if before is None:
            continue
        for key, case in now["cases"].items():
            for rival, (*ratio, rounds) in case["ratios"].items():
                *old, old_rounds = before["cases"].get(key, {"ratios": {}})["ratios"].get(rival, [0, 0, 0, 0])
                change = Change(f"{now['kind']} {key} next to {rival}", tuple(old), tuple(ratio))
                if min(rounds, old_rounds) >= MIN_ROUNDS and (ratio[1] > old[2] or ratio[2] < old[1]):
                    yield change


def table(history: Sequence[dict[str, Any]]) -> str:
    """Return the ratios that vmm is held to, by release, as Markdown: a table for each kind of host."""
    hosts: dict[str, list[dict[str, Any]]] = {}
    for found in history:
        hosts.setdefault(_host(found), []).append(found)
    parts = []
    for host, entries in hosts.items():
        releases = list(dict.fromkeys(found["release"] for found in entries))[-COLUMNS:]
        rows = []
        for last in _last(entries):
            for case, rival, text, limit in last["held"]:
                cells = [_cell(entries, release, last, case, rival) for release in releases]
                rows.append(f"| {text} | {limit:.3g} | {' | '.join(cells)} |")
        facts = {found["release"]: f"{found['date']}, Linux {found['host']['kernel']}" for found in entries}
        heads = " | ".join(f"{release} ({facts[release]})" for release in releases)
        rule = "|---" * (len(releases) + 2)
        parts.append("\n".join([f"On {host}:\n", f"| | at most | {heads} |", f"{rule}|", *rows]))
    return "\n\n".join(parts)


def with_table(text: str, made: str) -> str:
    """Return the document with the table in its place.

    Raises:
        ValueError: it has no place for it.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for the table: the lines {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{made}\n\n{END}{tail}"


def _last(history: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the newest entry of each kind and host."""
    for index, found in enumerate(history):
        if not any(_comparable(later, found) for later in history[index + 1 :]):
            yield found


def _comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    facts = ("kind", "mode")
    return all(one[fact] == other[fact] for fact in facts) and all(
        one["host"][fact] == other["host"][fact] for fact in SAME_HOST
    )


def _host(found: dict[str, Any]) -> str:
    host = found["host"]
    return f"{host['cpus']} x {host['cpu']}, {host['virtualization'] or 'no VMX or SVM'}, {host['kvm_module']}"


def _cell(entries: Sequence[dict[str, Any]], release: str, last: dict[str, Any], case: str, rival: str) -> str:
    for found in entries:
        if found["release"] == release and _comparable(found, last) and rival in found["cases"][case]["ratios"]:
            *ratio, rounds = found["cases"][case]["ratios"][rival]
            noisy = " noisy" if found["noise"] else ""
            return f"{_words(ratio)}{noisy}" if rounds >= MIN_ROUNDS else f"{ratio[0]:.3g}, too few rounds"
    return ""


def _words(ratio: Sequence[float]) -> str:
    return f"{ratio[0]:.3g} ({ratio[1]:.3g} to {ratio[2]:.3g})"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def main(words: Sequence[str], docs: Path = DOCS) -> int:
    """Keep results and compare; return the exit status."""
    from vmm.installation import version

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="scripts/bench history [--release NAME] [RESULT.json ...]",
    )
    parser.add_argument("--release", help=argparse.SUPPRESS)
    parser.add_argument("results", nargs="*", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    data, page = docs / "benchmarks.json", docs / "benchmarks.md"
    history: list[dict[str, Any]] = json.loads(data.read_text("utf-8")) if data.exists() else []
    try:
        for file in arguments.results:
            keep(history, entry(json.loads(file.read_text("utf-8")), arguments.release or version()))
        text = with_table(page.read_text("utf-8"), table(history))
    except (OSError, ValueError) as error:
        print(f"bench history: {error}", file=sys.stderr)
        return 2
    if arguments.results:
        # An entry a line, so that a release is a few lines in a diff.
        data.write_text("[\n" + ",\n".join(json.dumps(found) for found in history) + "\n]\n", "utf-8")
        page.write_text(text, "utf-8")
    found = list(changes(history))
    for change in found:
        print(change)
    if not found:
        print("no ratio differs from the release before by more than its interval")
    return 1 if any(change.worse for change in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
