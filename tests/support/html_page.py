"""A page as a browser takes it: is it well formed, does it need anything else, what does it say?"""

import re
from html.parser import HTMLParser

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tags, what is referred to, and text.

    Attributes:
        tags: every element's name, in order.
        open: those that are not closed yet; none at the end of a well-formed page.
        references: of all attributes that can make a browser fetch or run something.
        text: without tags, entities resolved; style sheets are no text, and cells stand apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in VOID:
            self.text += " "
        else:
            self.open.append(tag)
        self._take(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._take(attrs)

    def _take(self, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "href", "xlink:href", "action", "data"}
        self.references += [value or "" for name, value in attrs if name in names or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if tag in {"td", "th", "text"}:
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def read(html: str) -> Page:
    """Parse a page."""
    page = Page()
    page.feed(html)
    page.close()
    assert not page.open
    return page


def check_self_contained(html: str) -> None:
    """Assert that a page runs nothing and fetches nothing."""
    page = read(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"@import|url\((?!#)", html)
