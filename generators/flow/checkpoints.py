"""Checkpoints of a training that are whole or not there, verified before they are used, and written by themselves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins import CheckpointIO

from catalog.errors import CorruptError
from catalog.folder import Folder

MAGIC = b"weightscape checkpoint 1 "  # then 64 digits of the sha256 of what follows the line
KEPT = 2  # the newest and, should that be damaged, the one before
LOG = logging.getLogger(__name__)


def read_checkpoint(path: str | os.PathLike[str]) -> bytes:
    """What a checkpoint holds, for `torch.load`, after comparing it with its digest.

    Raises:
        CorruptError: other bytes than were written. FileNotFoundError: no such file.
    """
    head, _, body = Path(path).read_bytes().partition(b"\n")
    if not head.startswith(MAGIC) or head[len(MAGIC) :].decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
        raise CorruptError(f"{os.fspath(path)} is no whole checkpoint: its bytes are not those that were written")
    return body


class VerifiedCheckpoints(CheckpointIO):
    """How Lightning writes and reads checkpoints here: atomically, with a digest, and without running any code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        body = buffer.getvalue()
        folder, name = os.path.split(os.fspath(path))
        Folder.at(folder).write(name, MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        body = io.BytesIO(read_checkpoint(path))
        found: dict[str, Any] = torch.load(body, map_location=map_location or "cpu", weights_only=True)
        return found

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Those in a folder, the newest first."""
    found = [path for path in Path(folder).glob("*.ckpt") if re.fullmatch(r"\d{9}\.ckpt", path.name)]
    return sorted(found, reverse=True)


def newest(folder: str | os.PathLike[str]) -> Path | None:
    """The newest whole checkpoint, None where there is none at all. One that is damaged is passed over, with a warning.

    Raises:
        CorruptError: there are some, and all are damaged.
    """
    damaged: CorruptError | None = None
    for path in checkpoints(folder):
        try:
            read_checkpoint(path)
        except CorruptError as error:
            LOG.warning("%s; going on from the one before", error)
            damaged = error
        else:
            return path
    if damaged is not None:
        raise CorruptError(f"{damaged}; no other is left: remove {os.fspath(folder)} to begin anew") from damaged
    return None


class Stop:
    """Whether a signal (Ctrl-C, SIGTERM) has asked to stop; the training then ends behind the step it is in."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While the block runs signals are noted; a second one, and those noted at its end, do what they did before."""
        previous: dict[int, Any] = {}

        def note(number: int, _: FrameType | None) -> None:
            if self.signal is not None:
                signal.signal(number, previous[number])
                signal.raise_signal(number)
            self.signal = number

        try:
            with contextlib.suppress(ValueError):  # only the main thread of a process may
                for number in (signal.SIGINT, signal.SIGTERM):
                    previous[number] = signal.signal(number, note)
            yield
        finally:
            for place, handler in previous.items():
                signal.signal(place, handler)
        if self.signal is not None:
            signal.raise_signal(self.signal)


class Checkpoints(lightning.Callback):
    """Writes a checkpoint every so many seconds, at the end and when asked to stop, and keeps the newest two.

    Args:
        folder: where they go, one a file, named by the iterations done. None: no files, only stopping.
        every: seconds between two; 0 writes one behind each step.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, every: float = 30.0, stop: Stop | None = None) -> None:
        self.folder, self.every, self.stop = folder, every, stop or Stop()
        self.before = 0.0  # seconds of training in earlier processes

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.begin = self.last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of training, in all processes that had a part in it."""
        return self.before + time.monotonic() - self.begin

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self.stop.signal is not None:
            trainer.should_stop = True
        due = time.monotonic() - self.last >= self.every or trainer.global_step >= trainer.max_steps
        if self.folder is not None and (due or trainer.should_stop):
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write one now, then remove all but the newest two."""
        assert self.folder is not None
        trainer.save_checkpoint(Path(self.folder) / f"{trainer.global_step:09d}.ckpt")
        for path in checkpoints(self.folder)[KEPT:]:
            trainer.strategy.remove_checkpoint(path)
        self.last = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = float(state_dict["seconds"])
