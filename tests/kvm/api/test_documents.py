"""Every command and snippet of the documents runs as it stands there."""

from pathlib import Path

import pytest
from snippets import CLONE, OUTPUT, run_document, snippets

DOCUMENTS = sorted(
    path.relative_to(CLONE).as_posix()
    for pattern in ("*.md", "docs/*.md", "firmware/*.md")
    for path in CLONE.glob(pattern)
)


@pytest.mark.needs_kvm
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_snippets_run(name: str, tmp_path: Path) -> None:
    runnable = [s.place for s in snippets(CLONE / name) if s.language not in OUTPUT and s.mark[0] != "not run"]
    assert run_document(CLONE / name, tmp_path) == runnable


def test_few_snippets_are_not_run() -> None:
    documents = [snippet for name in DOCUMENTS for snippet in snippets(CLONE / name) if snippet.language not in OUTPUT]
    left_out = [snippet for snippet in documents if snippet.mark[0] == "not run"]
    assert len(left_out) * 4 < len(documents), "\n".join(snippet.place for snippet in left_out)


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```sh\nfalse\ntrue\n```\n", r"DOC\.md:1: status 1"),
        ("<!-- ends with status 2 -->\n```sh\ntrue\n```\n", r"DOC\.md:2: status 0"),
        ("```python\nraise SystemExit(3)\n```\n", r"DOC\.md:1: status 3"),
        ("<!-- not running -->\n```sh\ntrue\n```\n", "no such mark"),
        ("```yaml\na: 1\n```\n", "yaml needs the mark"),
        ("```sh\ntrue\n", "does not end"),
    ],
)
def test_what_does_not_run_is_told(block: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snippets.CLONE", tmp_path)
    document = tmp_path / "DOC.md"
    document.write_text(block, encoding="utf-8")
    directory = tmp_path / "work"
    directory.mkdir()
    with pytest.raises(AssertionError, match=complaint):
        run_document(document, directory)
