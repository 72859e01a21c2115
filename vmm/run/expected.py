"""What `Machine.expect` returns, or raises."""

import re
from typing import AnyStr, Generic, NamedTuple

from vmm.errors import VmmError
from vmm.run.outcome import Outcome


class Expected(NamedTuple, Generic[AnyStr]):
    """What `Machine.expect` found.

    Attributes:
        which: of the patterns it was, from 0.
        match: its match; ``match[0]`` is the text, ``match[1]`` the first group.
        before: what the console had shown up to the match and was not read yet.
        console: "serial" or "debugcon".
    """

    which: int
    match: re.Match[AnyStr]
    before: AnyStr
    console: str


class ExpectError(VmmError):
    """What `Machine.expect` waited for did not show.

    Args:
        expected: what that was.
        outcome: how the run ended instead.
    """

    def __init__(self, expected: str, outcome: Outcome) -> None:
        super().__init__(f"expected {expected}: {outcome.message}")
        self.outcome = outcome
        self.exit_status = outcome.exit_status


class SendError(VmmError):
    """Nobody will notice what was to be typed, pressed, or plugged in: the guest has ended.

    Args:
        outcome: how.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"the guest has ended, and notices nothing any more: {outcome.message}")
        self.outcome = outcome
