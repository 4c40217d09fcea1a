"""Pickles of tensors (`.pt`), read by another process that has limits of memory and time and may not write files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog.errors import SourceError
from catalog.importers.found import BrokenError, Options, Tensors
from catalog.importers.tensors import TensorFile, as_array, make_layout, new_name, plain_names, width
from catalog.record import strict_json
from weightspace.layout import Layout

ANSWER_BYTES = 8 << 20  # of the JSON of an answer
START = 120.0  # seconds that importing torch may take
WORKER = Path(__file__).with_name("pickle_worker.py")
# Nothing of our environment but what Python and the linker need: it may hold keys.
PASSED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG")

Listed = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape of tensors by name


@dataclass
class Pickles:
    """The process that reads pickles: started with the first, started again after it died. Use it with `with`."""

    options: Options
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> Pickles:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process, which holds nothing worth keeping."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe and pipe.close()

    def open(self, path: Path, name: str) -> TensorFile:
        """The tensors in a pickle.

        Raises:
            SourceError: pickles are not allowed.
            BrokenError: it cannot be read within the limits, or holds something else; says why.
        """
        if not self.options.allow_pickle_subset:
            raise SourceError(
                f"{name} is a pickle, which can name code to run; allow_pickle_subset=True (--allow-pickle-subset) "
                "reads tensors and plain values out of it, in a process with limits, and runs no code of it"
            )
        content, _ = self._ask(path, name, False)
        layout, notes, _ = _described(content)

        def load() -> Tensors:
            content, data = self._ask(path, name, True)
            _, _, tensors = _described(content)
            out, start = {}, 0
            for tensor, (dtype, shape) in tensors.items():
                stop = start + math.prod(shape) * width(dtype)
                out[tensor] = as_array(memoryview(data)[start:stop], dtype, shape)
                start = stop
            return out

        return TensorFile(layout, load, notes)

    def _ask(self, path: Path, name: str, whole: bool) -> tuple[dict[str, Any], bytes]:
        """The answer to a question, and the bytes of the tensors that follow it."""
        process = self._started(name)
        assert process.stdin is not None
        deadline = time.monotonic() + self.options.time_limit
        try:
            process.stdin.write(json.dumps([os.fspath(path), whole]).encode() + b"\n")
            process.stdin.flush()
            length = int.from_bytes(self._receive(8, deadline), "little")
            if length > ANSWER_BYTES:
                raise ValueError(f"an answer of {length:,} bytes")
            content = strict_json(self._receive(length, deadline))
            if "error" in content:
                return content, b""
            size = sum(math.prod(shape) * width(dtype) for _, dtype, shape in content["tensors"]) if whole else 0
            if size > self.options.memory_limit:
                raise ValueError(f"tensors of {size:,} bytes, more than the {self.options.memory_limit:,} allowed")
            return content, self._receive(size, deadline)
        except TimeoutError as error:
            self.stop()
            raise BrokenError(f"reading it took more than the {self.options.time_limit:g} s allowed") from error
        except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
            code = process.poll()
            self.stop()
            why = f"ended with {code}" if code is not None else str(error) or type(error).__name__
            raise BrokenError(f"the process that read it {why[:200]}") from error

    def _started(self, name: str) -> subprocess.Popen[bytes]:
        if self._process is None:
            environment = {key: os.environ[key] for key in PASSED if key in os.environ}
            environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", os.fspath(WORKER), str(self.options.memory_limit)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            try:
                self._receive(8, time.monotonic() + START)
            except (EOFError, TimeoutError) as error:
                self.stop()
                raise SourceError(
                    f"{name} needs torch to be read, which did not start; install weightscape with torch"
                ) from error
        return self._process

    def _receive(self, size: int, deadline: float) -> bytes:
        """So many bytes of the answer, before the deadline and within the limit of memory."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, data = self._process.stdout.fileno(), bytearray()
        ready = select.poll()  # not select.select, which knows the first 1024 files of a process only
        ready.register(pipe, select.POLLIN)
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if not ready.poll(min(left, 0.2) * 1000):
                self._watch()
                continue
            part = os.read(pipe, min(size - len(data), 1 << 20))
            if not part:
                self._process.wait()
                raise EOFError
            data += part
        return bytes(data)

    def _watch(self) -> None:
        """Where the system does not keep to the limit of memory, look at it from outside."""
        if sys.platform == "linux" or self._process is None:
            return
        if resident(self._process.pid) > self.options.memory_limit + (1 << 30):
            raise ValueError("took more memory than allowed")


def resident(process: int) -> int:
    """Bytes of memory that a process has now, 0 when it is gone."""
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=False)
    return int(found.stdout.strip() or 0) * 1024


def _described(content: dict[str, Any]) -> tuple[Layout, tuple[str, ...], Listed]:
    """Layout, notes, and (dtype, shape) by name from an answer, which a hostile file may have made."""
    if "error" in content:
        raise BrokenError(_said(str(content["error"])))
    try:
        listed = {str(tensor): (str(dtype), tuple(shape)) for tensor, dtype, shape in content["tensors"]}
        tied = [(str(alias), str(owner)) for alias, owner in content["tied"]]
        dropped = sorted(map(str, content["dropped"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenError("the process that read it gave no answer that can be read") from error
    names, notes = plain_names(listed)
    tensors = {names[tensor]: kind for tensor, kind in listed.items()}
    layout = make_layout(tensors, [(new_name(alias, names), names.get(owner, owner)) for alias, owner in tied])
    if dropped:
        notes += (f"entries that are no weights were left out: {', '.join(dropped[:8])}",)
    return layout, notes, tensors


def _said(text: str) -> str:
    """What torch says at length, shortly."""
    if "Weights only load failed" in text or "UnpicklingError" in text:
        return "it holds more than tensors and plain values (an object that would have to run code), or is damaged"
    if any(words in text for words in ("MemoryError", "allocate", "mmap")):
        return f"it needs more memory than memory_limit allows ({text[:120]})"
    if "zip archive" in text:
        return f"it is cut short or damaged ({text[:120]})"
    return text[:300]
