"""Hurt zoos, builds and downloads, and count what survives: `python -m benchmarks.faults kill|flips|pull`.

These are the experiments behind the claims in README.md; the test suite runs short versions. Each appends one JSON line
to benchmarks/results/faults.jsonl and exits with status 1 when anything was lost or missed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

import catalog
from benchmarks.record import record
from catalog.errors import CorruptError, FormatError, MissingDataError

ROOT = Path(__file__).resolve().parent.parent


def kill(preset: str, kills: int, chain: int, seed: int) -> dict[str, object]:
    """Kill builds with SIGKILL at random moments, restart them, compare the tree digest with an undisturbed build's.

    Args:
        kills: in all. chain: of one build before it may end; with 1 every kill has a build of its own.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.zoo"
        begin = time.perf_counter()
        _build(preset, whole).wait()
        duration = time.perf_counter() - begin
        expected = catalog.verify(whole).digest
        done = builds = different = 0
        moments_hit: list[float] = []
        while done < kills:
            path = Path(folder) / "killed.zoo"
            left = duration
            for _ in range(min(chain, kills - done)):
                process = _build(preset, path)
                moment = moments.uniform(0, left / chain * 2 if chain > 1 else left)
                ended = _wait(process, moment)
                if ended:  # it was faster than the moment drawn: no kill, draw again on a fresh zoo
                    break
                workers = _children(process.pid)
                os.kill(process.pid, signal.SIGKILL)
                if moments.random() < 0.5:
                    for worker in workers:
                        _kill_quietly(worker)
                process.wait()
                _wait_gone(workers)
                moments_hit.append(moment)
                done += 1
            assert _build(preset, path).wait() == 0, "a restarted build failed"
            found = catalog.verify(path)
            builds += 1
            different += found.digest != expected or not found.ok
            shutil.rmtree(path)
            print(f"{done} kills, {builds} builds finished, {different} differ", file=sys.stderr, flush=True)
    return {
        "experiment": "kill",
        "preset": preset,
        "kills": done,
        "builds": builds,
        "different": different,
        "undisturbed_seconds": round(duration, 1),
        "moments": [round(moment, 2) for moment in moments_hit],
        "seed": seed,
    }


def flips(zoo: str, count: int, seed: int) -> dict[str, object]:
    """Flip random bits, one at a time, in every kind of file; count what `verify` finds and what `read` refuses."""
    choose = random.Random(seed)
    found: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    reads: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zoo"
        shutil.copytree(zoo, path)
        by_kind: dict[str, list[Path]] = {}
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            by_kind.setdefault(_kind(file.relative_to(path)), []).append(file)
        for number in range(count):
            kind = sorted(by_kind)[number % len(by_kind)]
            file = choose.choice(by_kind[kind])
            whole = file.read_bytes()
            bit = choose.randrange(len(whole) * 8)
            hurt = bytearray(whole)
            hurt[bit // 8] ^= 1 << bit % 8
            file.write_bytes(hurt)
            tried[kind] += 1
            found[kind] += _noticed(path)
            if kind == "weights":
                reads["raised" if _read_raises(path) else "silent"] += 1
            file.write_bytes(whole)
    return {
        "experiment": "flips",
        "flips": count,
        "tried": dict(tried),
        "found": dict(found),
        "reads_of_flipped_weights": dict(reads),
        "missed": sum(tried.values()) - sum(found.values()) + reads["silent"],
        "seed": seed,
    }


def pull(models: int, kills: int, together: int, seed: int) -> dict[str, object]:
    """Kill downloads with SIGKILL at random moments and go on; then several processes download one zoo at once.

    The zoo is published, and comes from `weightscape serve`'s server over HTTP. After each kill the same command runs
    again, and what it gives is verified to the byte; each kill has a folder and a cache of its own.

    Args:
        models: MLPs 64-32-32-10 with 11 checkpoints, 152 kB each.
        together: processes with one cache, each with a folder of its own.
    """
    from benchmarks.storage import LAYOUT, write_zoo
    from catalog.serve import Serving

    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_zoo(folder / "whole.zoo", np.random.default_rng(seed).normal(size=(models, 11, LAYOUT.size)).astype("f4"))
        manifest = catalog.publish(folder / "whole.zoo", folder / "published").manifest
        sent: list[int] = []
        with Serving(folder / "published", log=lambda *said: sent.append(said[3])) as url:
            begin = time.perf_counter()
            assert _pull(url, folder / "first.zoo", folder / "first").wait() == 0
            duration = time.perf_counter() - begin
            expected = catalog.verify(folder / "first.zoo").digest
            one = sum(sent)
            hit: list[float] = []
            different = 0
            while len(hit) < kills:
                dest, cache = folder / "killed.zoo", folder / "cache"
                process, moment = _pull(url, dest, cache), moments.uniform(0, duration)
                if not _wait(process, moment):
                    process.kill()
                    process.wait()
                    hit.append(moment)
                    assert _pull(url, dest, cache).wait() == 0, "a download that goes on failed"
                    found = catalog.verify(dest)
                    different += found.digest != expected or not found.ok
                    print(f"{len(hit)} kills, {different} differ", file=sys.stderr, flush=True)
                shutil.rmtree(dest, ignore_errors=True)
                shutil.rmtree(cache, ignore_errors=True)
            sent.clear()
            side_by_side = [_pull(url, folder / f"{n}.zoo", folder / "shared") for n in range(together)]
            failed = sum(process.wait() != 0 for process in side_by_side)
            answers = sum(sent)
            different += sum(catalog.verify(folder / f"{n}.zoo").digest != expected for n in range(together))
    return {
        "experiment": "pull",
        "bytes": manifest.size,
        "kills": len(hit),
        "different": different + failed,
        "undisturbed_seconds": round(duration, 2),
        "moments": [round(moment, 2) for moment in hit],
        "processes": together,
        "failed": failed,
        "bytes_sent_over_one_download": round(answers / one, 4),
        "seed": seed,
    }


def _pull(url: str, dest: Path, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "weightscape", "pull", url, str(dest), "--quiet"]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "WEIGHTSCAPE_CACHE": str(cache)})


def _kind(name: Path) -> str:
    if name.name == "zarr.json":
        return "zarr.json"
    return {"weights": "weights", "index": "fragment", "zoo.json": "zoo.json"}.get(name.parts[0], "table")


def _noticed(path: Path) -> bool:
    try:
        return not catalog.verify(path).ok
    except (CorruptError, FormatError):
        return True


def _read_raises(path: Path) -> bool:
    """Whether reading all weights back raises."""
    zoo = catalog.open(path)
    try:
        for variant, rows in zoo.scan().collect().group_by("variant"):
            assert variant
            zoo.read(rows)
    except (CorruptError, MissingDataError):
        return True
    return False


def _build(preset: str, path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "weightscape", "build", preset, str(path), "--quiet"]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = path.read_text().split() if path.exists() else []
    return [int(child) for child in found]


def _kill_quietly(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _wait_gone(pids: list[int]) -> None:
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
        assert time.monotonic() < limit, f"workers {pids} outlive their parent"
        time.sleep(0.05)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    killing = commands.add_parser("kill")
    killing.add_argument("preset")
    killing.add_argument("--kills", type=int, default=50)
    killing.add_argument("--chain", type=int, default=1)
    flipping = commands.add_parser("flips")
    flipping.add_argument("zoo")
    flipping.add_argument("--count", type=int, default=400)
    pulling = commands.add_parser("pull")
    pulling.add_argument("--models", type=int, default=500)
    pulling.add_argument("--kills", type=int, default=20)
    pulling.add_argument("--together", type=int, default=8)
    for one in (killing, flipping, pulling):
        one.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.command == "kill":
        row = kill(given.preset, given.kills, given.chain, given.seed)
    elif given.command == "pull":
        row = pull(given.models, given.kills, given.together, given.seed)
    else:
        row = flips(given.zoo, given.count, given.seed)
    record("faults", row)
    return int(bool(row.get("different") or row.get("missed")))


if __name__ == "__main__":
    sys.exit(main())
