"""Where vmm keeps things, for any user."""

import os
import pwd
from pathlib import Path

import pytest

from vmm import directories


def test_what_the_environment_says_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert directories.cache() == tmp_path / "vmm"


@pytest.mark.parametrize("given", ["", "relative", "./cache", "~"])
def test_what_is_not_absolute_is_ignored(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert directories.cache() == Path("/home/somebody/.cache/vmm")


def test_a_user_without_home_and_without_an_account_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {account.pw_uid for account in pwd.getpwall()}
    monkeypatch.setattr(os, "getuid", lambda: max(ids) + 1)
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert directories.cache() == Path("/nonexistent/.cache/vmm")
