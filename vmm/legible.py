"""Text of unknown origin, made safe to show: a guest may print anything, and some of it steers terminals."""

from collections.abc import Sequence


def legible(text: str, *, keep: str = "") -> str:
    """Return a text with what does not print as its escape.

    That is control characters, U+202E and its like, which change how other text looks, and what stands for bytes that
    are no UTF-8, which no file takes.

    Args:
        text: whatever a guest or a file says.
        keep: characters to leave as they are, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def shortened(text: str, most: int = 80) -> str:
    """Return a text that is no longer than so many characters, the end left out: a guest's line may have megabytes."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def counted(number: int, thing: str) -> str:
    """Return a number of things in words: "1 CPU", "2 CPUs"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return what a mistyped word was probably meant to be; "" if it is like none."""
    from difflib import get_close_matches  # for those who mistype

    return next(iter(get_close_matches(word.lower(), known, n=1, cutoff=0.7)), "")
