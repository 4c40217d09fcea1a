"""Runs hostile cases in this process and watches: files, hosts, code, memory, time. `python -m tests.hostile.guard`.

A line of JSON for each case begins it, another one tells what happened, so that a case that ends the process is known.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

import catalog
from catalog.errors import ZooError
from catalog.publish import publish
from catalog.pull import pull
from tests.catalog_zoos import Truth, check_reads
from tests.hostile.cases import CASES, Case, templates

HANGS = 60.0  # seconds for a case
HOMES = tuple(os.path.realpath(place) for place in (sys.prefix, sys.base_prefix, os.getcwd()))
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
PROCESSES = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"}


class Guard:
    """Notes what a case must not do. Audit hooks stay for ever, so this one is switched on and off."""

    def __init__(self) -> None:
        self.inside: tuple[str, ...] | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.inside is not None and (what := self.forbidden(event, args)):
            self.seen.append(what[:300])

    def forbidden(self, event: str, args: tuple[Any, ...]) -> str:
        if event in PROCESSES or event in ("pickle.find_class", "ctypes.dlopen"):
            return f"{event} {args!r}"
        if event in ("socket.connect", "socket.getaddrinfo"):
            return f"{event} {args[1:]!r}"
        if event == "exec" and not self.ours(getattr(args[0], "co_filename", "?")):
            return f"code of {args[0]!r}"
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            writes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(args[2], int) else False
            path = os.path.realpath(os.fsdecode(args[0]))
            if not self.within(path) and (writes or path.startswith(("/etc/passwd", "/etc/shadow"))):
                return f"open {path} {args[1:]!r}"
            if not self.within(path) and "secret" in path:
                return f"read {path}"
        if event in CHANGES:
            paths = [os.fsdecode(arg) for arg in args if isinstance(arg, str | bytes | os.PathLike)]
            if outside := [path for path in paths if not self.within(os.path.realpath(path))]:
                return f"{event} {outside}"
        return ""

    def ours(self, name: str) -> bool:
        """Whether code is of this installation: modules imported late, and what dataclasses and polars make."""
        return name.startswith("<") or os.path.realpath(name).startswith(HOMES)

    def within(self, path: str) -> bool:
        return path.startswith(self.inside or ()) or path == os.devnull


def attempts(place: Path, out: Path, truth: Truth) -> dict[str, Callable[[], object]]:
    """Everything that anybody does with a zoo. Each raises, gives problems, or is right."""

    def read() -> None:
        check_reads(catalog.open(place), truth)

    def looked(quick: bool) -> Callable[[], Any]:
        return lambda: [f"{p.kind}: {p.message}" for p in catalog.verify(place, quick=quick).problems]

    def measured() -> None:
        zoo = catalog.open(place)
        zoo.measurements()
        for frame, variants in zoo.frames().items():
            for variant in variants:
                zoo.frame(frame, variant)

    return {
        "scan": lambda: catalog.open(place).scan(None).collect() is None,
        "query": lambda: (
            catalog.open(place).scan().filter(pl.col("width") > 0).select("run", "epoch").collect() is None
        ),
        "read": read,
        "measured": measured,
        "verify": looked(False),
        "quick": looked(True),
        "pack": lambda: catalog.pack(place, out / "packed") is None,
        "publish": lambda: publish(place, out / "published") is None,
        "pull": lambda: pull(place, out / "pulled") is None,
    }


def memory(key: str) -> int:
    """VmHWM (peak) or VmRSS of this process in bytes; 0 where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def run(case: Case, home: Path, guard: Guard, made: dict[str, tuple[Path, Truth]]) -> dict[str, Any]:
    """What happened: attempt -> what it said ("" for nothing wrong), and what the guard saw."""
    template, truth = made[case.form]
    place = home / "case" / "zoo"
    shutil.copytree(template, place, symlinks=True)
    told = case.build(place)
    target = place if told is None else place / told
    out = home / "case" / "out"
    if os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begun = memory("VmRSS"), time.process_time()
    result: dict[str, Any] = {}
    guard.seen, guard.inside = [], tuple(os.path.realpath(p) for p in (home / "case", home / "cache"))
    for name, attempt in attempts(target, out, truth).items():
        if name in case.skip:
            continue
        try:
            said = attempt()
            result[name] = "; ".join(said) if isinstance(said, list) else ""
        except ZooError as error:
            result[name] = f"{type(error).__name__}: {error}"
        except BaseException:
            result[name] = f"NOT TYPED {traceback.format_exc()[-1500:]}"
    guard.inside = None
    if "link to a secret" in case.name:  # whose bytes are read and compared, and told to nobody
        guard.seen = [text for text in guard.seen if not text.startswith("read ")]
    grown = max(memory("VmHWM") - before, 0)
    shutil.rmtree(home / "case")
    return {"said": result, "seen": guard.seen, "seconds": time.process_time() - begun, "bytes": grown}


def main(home: Path, names: list[str]) -> None:
    made = templates(home / "templates")
    (home / "secret.txt").write_text("a secret")
    guard = Guard()
    for form in made:  # what is imported late is imported now
        run(Case(f"warm {form}", form, lambda place: None), home, guard, made)
    chosen = {case.name: case for case in CASES}
    for name in names or chosen:
        faulthandler.dump_traceback_later(HANGS, exit=True)
        print(json.dumps({"begin": name}), flush=True)
        print(json.dumps({"end": name, **run(chosen[name], home, guard, made)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
