"""The pages on which web servers list their folders, as names; whatever else such a page links to is passed over."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urljoin, urlsplit

from catalog.folder import PLAIN

TITLES = re.compile(rb"(index of|directory listing)", re.IGNORECASE)  # of all servers we know


class _Links(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def listed_in(page: bytes, folder: str) -> list[str]:
    """URLs of what a page lists directly in a folder, in its order, each once; those of folders end with a slash.

    Links to other places, to other hosts and with a query (the columns to sort by) are no entries.

    Args:
        folder: its URL, with a slash at the end.

    >>> page = b'<a href="?C=N">Name</a> <a href="../">up</a> <a href="a%20b">a b</a> <a href="/zoo/c/">c</a>'
    >>> listed_in(page, "http://host/zoo/")
    ['http://host/zoo/a%20b', 'http://host/zoo/c/']
    """
    parser = _Links()
    parser.feed(page.decode("utf-8", "replace"))
    found: dict[str, None] = {}
    for link in parser.found:
        try:
            parts = urlsplit(urljoin(folder, link.strip()))
        except ValueError:  # a malformed address in brackets
            continue
        url = f"{parts.scheme}://{parts.netloc}{quote(unquote(parts.path), safe=PLAIN)}"  # spelled as our own are
        name = unquote(url[len(folder) :].removesuffix("/"))
        if not url.startswith(folder) or parts.query or parts.fragment or {"/", "\\", "\0"} & set(name):
            continue
        if name not in ("", ".", ".."):
            found[url] = None
    return list(found)


def says_it_lists(page: bytes) -> bool:
    """Whether a page without entries is the listing of an empty folder, and not a page of another kind.

    >>> says_it_lists(b"<html><title>Index of /zoo/index/</title></html>"), says_it_lists(b"<html>Welcome</html>")
    (True, False)
    """
    return TITLES.search(page[:4096]) is not None


def is_whole(page: bytes | bytearray) -> bool:
    """Whether a page has its end: half a listing would hide files."""
    return b"</html" in page[-1024:].lower()
