"""The executor `local`: a process a core, one thread each, a task is a shard. Survives workers that die or hang."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from catalog.errors import BuildError, StorageError
from catalog.store import Zoo

Task = tuple[str, int]  # variant, shard
TRIES = 3  # a shard whose worker died is tried so often
STALL = 900.0  # seconds without a sign of life after which a worker counts as hung
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "NUMEXPR_NUM_THREADS")


class _Worker:
    """A process and the thread that reads its answers."""

    def __init__(
        self, number: int, zoo: Zoo, options: Mapping[str, Any], device: str, answers: queue.Queue[Any]
    ) -> None:
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
        self.task: Task | None = None
        self.seen = time.monotonic()
        url = zoo.folder.root if zoo.folder.local else zoo.url
        core = cores[number % len(cores)] if cores else None
        self.send({"zoo": url, "storage_options": dict(options), "device": device, "core": core})
        threading.Thread(target=self._read, args=(answers,), daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; the reading thread says so

    def _read(self, answers: queue.Queue[Any]) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            answers.put((self, json.loads(line)))
        answers.put((self, {"kind": "gone"}))

    def stop(self) -> str:
        """End it at once (commits are atomic) and return the end of what it wrote to standard error."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        if self.errors.closed:
            return ""
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace").strip()
        self.errors.close()
        return text[-600:]


def run_local(
    zoo: Zoo,
    tasks: Sequence[Task],
    *,
    workers: int,
    device: str = "cpu",
    storage_options: Mapping[str, Any] | None = None,
    on_samples: Callable[[Task, int], None] = lambda task, samples: None,
    on_done: Callable[[Task], None] = lambda task: None,
) -> None:
    """Build shards in worker processes, in the order given.

    Args:
        on_samples, on_done: called in this thread as work advances.

    Raises:
        StorageError: the disk refused; the other workers are stopped.
        BuildError: shards that failed, after all others were built.
    """
    waiting = list(reversed(tasks))
    tries: dict[Task, int] = {}
    failed: dict[Task, str] = {}
    answers: queue.Queue[tuple[_Worker, dict[str, Any]]] = queue.Queue()
    with _team(
        min(workers, len(tasks)), lambda number: _Worker(number, zoo, storage_options or {}, device, answers)
    ) as team:
        while team:
            for worker, answer in _answers(answers, team):
                task, kind = worker.task, answer["kind"]
                worker.seen = time.monotonic()
                if kind == "progress" and task:
                    on_samples(task, answer["samples"])
                    continue
                if kind == "error" and task:
                    if answer["type"] == "StorageError":
                        wrapped = StorageError(answer["message"])
                        wrapped.errno = answer["errno"]
                        raise wrapped
                    failed[task] = f"{answer['type']}: {answer['message']}"
                elif kind == "done" and task:
                    on_done(task)
                elif kind == "gone":
                    position = team.index(worker)
                    why = worker.stop()
                    if task:
                        tries[task] = tries.get(task, 0) + 1
                        if tries[task] < TRIES:
                            waiting.append(task)
                        else:
                            failed[task] = (
                                f"its worker died {TRIES} times (exit {worker.process.returncode}); {why or 'no message'}"
                            )
                    elif worker.process.returncode not in (0, None) and not waiting:
                        pass
                    else:
                        tries[("worker", position)] = tries.get(("worker", position), 0) + 1
                        if tries[("worker", position)] >= TRIES:
                            raise BuildError(
                                f"a worker cannot start (exit {worker.process.returncode}): {why or 'no message'}"
                            )
                    if waiting:
                        team[position] = _Worker(position, zoo, storage_options or {}, device, answers)
                    else:
                        team.remove(worker)
                    continue
                worker.task = waiting.pop() if waiting else None
                if worker.task:
                    worker.send({"variant": worker.task[0], "shard": worker.task[1]})
                else:
                    worker.stop()
                    team.remove(worker)
    if failed:
        lines = "; ".join(f"shard {shard} of {variant}: {why}" for (variant, shard), why in list(failed.items())[:5])
        raise BuildError(
            f"{len(failed)} of {len(tasks)} shards failed, the others are committed; run the same command again. {lines}"
        )


def _answers(answers: queue.Queue[Any], team: Sequence[_Worker]) -> Iterator[tuple[_Worker, dict[str, Any]]]:
    """Answers of the team; a worker without a sign of life for too long is killed, and then answers "gone"."""
    try:
        worker, answer = answers.get(timeout=0.5)
        if worker in team:
            yield worker, answer
    except queue.Empty:
        for worker in team:
            if time.monotonic() - worker.seen > STALL:
                worker.process.kill()


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
