"""The explorer's page: how large, how long to make and to open. `python -m benchmarks.explorer`.

A zoo of 1,000 models with six checkpoints each; a headless Chromium opens its page five times, from a file, until the
table and map are drawn. `python -m benchmarks.explorer picture ZOO OUT.png` makes the README's picture instead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import bar, record
from catalog.explorer import explore
from tests.browser import opened, running
from tests.explorer_zoos import many

MODELS, CHECKPOINTS, METRICS = 1000, 6, 12


def measure(times: int = 5) -> dict[str, object]:
    """A row of what the page costs."""
    with tempfile.TemporaryDirectory() as name, running() as browser:
        folder = Path(name)
        many(folder / "many.zoo", MODELS, CHECKPOINTS, METRICS)
        start = time.perf_counter()
        page = explore(folder / "many.zoo", folder / "page.html")
        made = time.perf_counter() - start
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            with opened(browser, page):
                seconds.append(time.perf_counter() - start)
        size = page.stat().st_size
    median = statistics.median(seconds)
    return {
        "operation": "open the explorer's page in a new tab, until all is drawn",
        "setting": {"models": MODELS, "checkpoints": CHECKPOINTS, "metrics": METRICS},
        "ours": f"{median:.2f} s for {size / 1e6:.1f} MB, made in {made:.1f} s",
        "seconds": seconds,
        **bar(median, most=2),
    }


def picture(zoo: str, out: str) -> None:
    """The first screen of a zoo's page."""
    with tempfile.TemporaryDirectory() as folder, running() as browser:
        page = explore(zoo, Path(folder) / "page.html")
        with opened(browser, page, viewport={"width": 1120, "height": 1000}) as tab:
            tab.screenshot(path=out)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 when the page opens too slowly."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explorer", description=__doc__)
    parser.add_argument("picture", nargs="*", metavar="picture ZOO OUT.png")
    asked = parser.parse_args(argv).picture
    if asked and (len(asked) != 3 or asked[0] != "picture"):
        parser.error("give nothing, or: picture ZOO OUT.png")
    if asked:
        picture(*asked[1:])
        return 0
    row = measure()
    record("explorer", row, libraries=("altair", "playwright"))
    return int(not row["met"])


if __name__ == "__main__":
    sys.exit(main())
