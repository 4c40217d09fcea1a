"""The executor `local`: a process a core, one thread each. A task is a shard to build, or a unit to measure.

Survives workers that die or hang.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from catalog.errors import BuildError, StorageError
from catalog.store import Zoo

Task = Any  # hashable; of a build (variant, shard)
TRIES = 3  # a task whose worker died is tried so often
STALL = 900.0  # seconds without a sign of life after which a worker counts as hung
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "NUMEXPR_NUM_THREADS")


class _Worker:
    """A process and the thread that reads its answers."""

    def __init__(
        self,
        number: int,
        task: Task,
        message: Callable[[Task], Mapping[str, Any]],
        hello: Mapping[str, Any],
        answers: queue.Queue[Any],
    ) -> None:
        self.message = message
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        here = str(Path(__file__).resolve().parent.parent)
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": os.pathsep.join(paths)}
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zoo.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent alone, which decides
        )
        self.seen = time.monotonic()
        core = cores[number % len(cores)] if cores else None
        self._send({**hello, "core": core})
        self.give(task)
        threading.Thread(target=self._read, args=(answers,), daemon=True).start()

    def give(self, task: Task) -> None:
        """Hand it its next task."""
        self.task = task
        self._send(self.message(task))

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it died; the reading thread says so
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def _read(self, answers: queue.Queue[Any]) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            answers.put((self, json.loads(line)))
        answers.put((self, {"kind": "gone"}))

    def stop(self) -> str:
        """End it at once (commits are atomic); says how it ended and the last it wrote to standard error."""
        self.process.kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                if pipe:
                    pipe.close()
        if self.errors.closed:
            return ""
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip()[-600:]
        self.errors.close()
        return f"(exit status {code}{'; ' + said if said else ''})"


def shard_message(task: Task) -> dict[str, Any]:
    """What a worker is told to build (variant, shard)."""
    return {"variant": task[0], "shard": task[1]}


def shard_name(task: Task) -> str:
    return f"shard {task[1]} of {task[0]}"


def run_local(
    zoo: Zoo,
    tasks: Sequence[Task],
    *,
    workers: int,
    device: str = "cpu",
    storage_options: Mapping[str, Any] | None = None,
    message: Callable[[Task], Mapping[str, Any]] = shard_message,
    called: Callable[[Task], str] = shard_name,
    what: str = "shards",
    on_samples: Callable[[Task, int], None] = lambda task, samples: None,
    on_done: Callable[[Task], None] = lambda task: None,
) -> None:
    """Work off tasks in worker processes, in the order given.

    Args:
        message: what a worker is told of a task, JSON. called, what: a task's name, and that of several, for errors.
        on_samples, on_done: called in this thread as work advances.

    Raises:
        StorageError: the disk refused; the other workers are stopped.
        BuildError: tasks that failed, after all others were done; or workers that do not even start.
    """
    answers: queue.Queue[tuple[_Worker, dict[str, Any]]] = queue.Queue()
    waiting = deque(tasks)
    deaths: Counter[Task] = Counter()
    failed: dict[Task, str] = {}
    fruitless = 0  # deaths in a row without any work in between: the environment is broken, not a shard

    hello = {
        "zoo": zoo.folder.root if zoo.folder.local else zoo.url,
        "metrics_at": zoo.metrics_at and (zoo.metrics_at.root if zoo.metrics_at.local else zoo.metrics_at.url),
        "storage_options": dict(storage_options or {}),
        "device": device,
    }

    def start(number: int) -> _Worker:
        return _Worker(number, waiting.popleft(), message, hello, answers)

    with _team(min(workers, len(tasks)), start) as team:
        while team:
            found = _next_answer(answers, team)
            if not found:
                continue
            worker, answer = found
            task, position = worker.task, team.index(worker)
            if answer["kind"] == "samples":
                fruitless = 0
                on_samples(task, answer["samples"])
                continue
            if answer["kind"] == "gone":
                why = f"its worker died {worker.stop()}"
                deaths[task] += 1
                fruitless += 1
                if fruitless > TRIES + len(team):
                    raise BuildError(f"worker processes die before they do any work: {why}")
                if deaths[task] < TRIES:
                    waiting.append(task)
                else:
                    failed[task] = f"{why} ({TRIES} times)"
            elif answer["kind"] == "done":
                fruitless = 0
                on_done(task)
            elif answer["type"] == "StorageError":
                refused = StorageError(answer["message"])
                refused.errno = answer["errno"]
                raise refused
            else:
                failed[task] = f"{answer['type']}: {answer['message']}"
            if answer["kind"] != "gone" and waiting:
                worker.give(waiting.popleft())
                continue
            worker.stop()
            if waiting:
                team[position] = start(position)
            else:
                team.remove(worker)
    if failed:
        lines = "; ".join(f"{called(task)}: {why}" for task, why in list(failed.items())[:5])
        raise BuildError(f"{len(failed)} of {len(tasks)} {what} failed, the rest is committed; run it again. {lines}")


def _next_answer(answers: queue.Queue[Any], team: Sequence[_Worker]) -> tuple[_Worker, dict[str, Any]] | None:
    """One answer of a member of the team. One without a sign of life for too long is killed, and so answers "gone"."""
    try:
        worker, answer = answers.get(timeout=0.5)
    except queue.Empty:
        for worker in team:
            if time.monotonic() - worker.seen > STALL:
                worker.process.kill()
        return None
    worker.seen = time.monotonic()
    return (worker, answer) if worker in team else None


@contextmanager
def _team(count: int, start: Callable[[int], _Worker]) -> Iterator[list[_Worker]]:
    """Workers that are gone when the block ends, however it ends."""
    team: list[_Worker] = []
    try:
        for number in range(count):
            team.append(start(number))
        yield team
    finally:
        for worker in team:
            worker.stop()
