"""The snippets of a Markdown document, and how to run them as they stand there. CONTRIBUTING.md explains the marks."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pexpect

CLONE = Path(__file__).parents[2]

RUNNABLE = {"python", "sh"}

OUTPUT = {"", "text"}
"""Languages of blocks that are nothing to run: what was printed."""

_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>[\w.-]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"# (?P<name>[\w.-]+\.\w+)\n")
_MARKS = {
    "not run": re.compile(r"not run: (\S.*)"),
    "status": re.compile(r"ends with status (\d+)"),
    "words": re.compile(r"tried with: (\S.*)"),
    "typed": re.compile(r"shows: (\S.*); then Ctrl-A X"),
}

DEADLINE = 600


class Snippet(NamedTuple):
    """A block of a document.

    Attributes:
        place: FILE:LINE.
        language: behind the fence.
        text: within it.
        mark: kind and argument of the mark before it; ("", "") if there is none.
    """

    place: str
    language: str
    text: str
    mark: tuple[str, str] = ("", "")

    @property
    def file(self) -> str | None:
        """The file that it is, as its first line says; None: it is to be run."""
        match = _FILE.match(self.text)
        return match and match["name"]


def snippets(document: Path) -> list[Snippet]:
    """All blocks of a document; one in a language that is not run must say so, by a mark."""
    text = document.read_text(encoding="utf-8")
    fences = len(re.findall(r"^```", text, re.MULTILINE))
    assert fences % 2 == 0, f"{document}: a block that does not end"
    found = []
    for match in _BLOCK.finditer(text):
        place = f"{document.relative_to(CLONE)}:{text.count(chr(10), 0, match.start('language')) + 1}"
        mark = _parse_mark(match["mark"], place)
        language = match["language"]
        assert language in RUNNABLE | OUTPUT or mark[0] == "not run", f"{place}: {language} needs the mark 'not run'"
        found.append(Snippet(place, language, match["text"], mark))
    assert len(found) == fences // 2, f"{document}: a block that is not understood"
    return found


def _parse_mark(text: str | None, place: str) -> tuple[str, str]:
    if text is None:
        return "", ""
    for kind, pattern in _MARKS.items():
        match = pattern.fullmatch(text)
        if match:
            return kind, match[1]
    raise AssertionError(f"{place}: no such mark: {text}")


def run_document(document: Path, directory: Path) -> list[str]:
    """Run what a document has, one block after the other, in one directory; return what was run.

    The directory gets the clone's scripts, and its environment is the clone's, as if it were activated there.
    """
    for name in ("scripts", ".venv"):
        (directory / name).symlink_to(CLONE / name)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = inherited | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = []
    for snippet in snippets(document):
        if snippet.language not in RUNNABLE or snippet.mark[0] == "not run":
            continue
        if snippet.file is not None:
            (directory / snippet.file).write_text(snippet.text, encoding="utf-8")
        else:
            _run(snippet, directory, environment)
        done.append(snippet.place)
    return done


def _run(snippet: Snippet, directory: Path, environment: Mapping[str, str]) -> None:
    kind, argument = snippet.mark
    text = snippet.text
    if kind == "words":
        text = re.sub(r"[ \t]*(#.*)?\n", rf" {argument} \1\n", text)
    command = ["bash", "-euo", "pipefail", "-c", text] if snippet.language == "sh" else [sys.executable, "-c", text]
    if kind == "typed":
        _run_on_terminal(snippet.place, command, directory, environment, argument)
        return
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=DEADLINE,
        check=False,
    )
    wanted = int(argument) if kind == "status" else 0
    assert done.returncode == wanted, f"{snippet.place}: status {done.returncode}\n{text}\n{done.stdout[-5000:]}"


def _run_on_terminal(
    place: str, command: list[str], directory: Path, environment: Mapping[str, str], shown: str
) -> None:
    child = pexpect.spawn(
        shlex.join(command), cwd=str(directory), env=dict(environment), timeout=DEADLINE, encoding="utf-8"
    )
    try:
        child.expect_exact(shown)
        child.send("\x01x")
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 0, f"{place}: status {child.exitstatus}\n{child.before}"
