"""What `Machine.expect` returns."""

import re
from typing import AnyStr, Generic, NamedTuple


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
