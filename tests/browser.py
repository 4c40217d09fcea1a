"""A real browser without a window, and pages whose every complaint and every request is recorded."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """Where Chromium is: WEIGHTSCAPE_CHROMIUM, else the first of `NAMES` on the path.

    Without one the tests are skipped; in CI, where `.ci/run` installs it, they fail.
    """
    found = os.environ.get("WEIGHTSCAPE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    why = "no Chromium: install one (Debian: chromium-headless-shell), or name it in WEIGHTSCAPE_CHROMIUM"
    return pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


@contextmanager
def running() -> Iterator[Any]:
    """A browser of Playwright. Chromium needs --no-sandbox where it runs as root, as in a container."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield browser
        browser.close()


@dataclass
class Seen:
    """What a page said in its console, what it asked for beside itself, and what of that its policy refused."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Any, page: Path, fragment: str = "", **options: Any) -> Iterator[Any]:
    """The page in the browser, once all is drawn. Fails at the end when it complained or asked for anything.

    `seen` of the result is the record, for those that complain on purpose.
    """
    context = browser.new_context(accept_downloads=True, **{"viewport": {"width": 1200, "height": 860}, **options})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab, seen, url = context.new_page(), Seen(), page.as_uri() + fragment
    tab.on("console", lambda message: seen.said.append(message.text))
    tab.on("pageerror", lambda error: seen.said.append(str(error)))
    tab.on("request", lambda request: seen.asked.append(request.url))
    tab.on("requestfailed", lambda request: seen.refused.add(request.url) if request.failure == "csp" else None)
    tab.on("requestfinished", lambda request: seen.sent.append(request.url))
    context.route(re.compile("^https?:"), lambda route: route.abort())  # in case the policy lets one through
    tab.seen = seen
    tab.goto(url)
    tab.wait_for_selector("html[data-ready]", state="attached")
    yield tab
    context.close()
    asked = {url.split("#")[0] for url in seen.asked if not url.startswith("blob:")}
    assert (seen.said, asked) == ([], {page.as_uri()})
