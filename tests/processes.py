"""The command as a process, and a look at processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`weightscape ...` as a process of its own session."""
    return subprocess.Popen(
        [sys.executable, "-m", "weightscape", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found.append(int(entry.parent.name))
    return found


def wait_until(condition: Callable[..., object], timeout: float = 60.0) -> None:
    """Poll until `condition()`; fail when it never comes."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.02)


def gone(pids: list[int]) -> bool:
    """Whether none of the processes runs (a zombie that nobody reaped does not run)."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    return not any(runs(pid) for pid in pids)
