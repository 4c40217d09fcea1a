"""Reads pickles of tensors in a process of its own, with limits. Started by `catalog.importers.pickles`; a script.

A question is a line of JSON, `[path, whether the numbers are wanted]`. An answer is 8 bytes of length, so much JSON,
and then, where wanted, the bytes of the tensors one after another. It imports nothing of ours: the process that reads
a stranger's file has as little as possible in it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO

INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")  # where weights may be

READY = b"ready..."  # eight bytes: torch is there, and the limits hold


def main(memory: int) -> None:
    """Answer until the questions end."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what torch prints is no answer
    import torch

    torch.set_num_threads(1)
    _limit(memory)
    answers.write(READY)
    answers.flush()
    for line in sys.stdin.buffer:
        path, whole = json.loads(line)
        try:
            tensors, dropped, tied = _read(torch, path)
            if (size := sum(t.numel() * t.element_size() for t in tensors.values())) > memory:
                raise MemoryError(f"its tensors have {size:,} bytes")  # expanded ones take none until they are written
            head = {
                "tensors": [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()],
                "dropped": dropped[:20],
                "tied": tied,
            }
        except BaseException as error:  # whatever it was, the next file gets its chance
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            _answer(answers, {"error": text[:500]})
            continue
        _answer(answers, head)
        if whole:
            for tensor in tensors.values():
                answers.write(_bytes(torch, tensor))
        answers.flush()
        del tensors


def _limit(memory: int) -> None:
    """No more memory than this on top of what torch takes, no file written, no process started, no core dumped."""
    # macOS does not keep to RLIMIT_AS; the other side watches there
    used = 0
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    limits = {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0} | ({"RLIMIT_AS": used + memory} if used else {})
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, ValueError, OSError):
            pass


def _read(torch: Any, path: str) -> tuple[dict[str, Any], list[str], list[list[str]]]:
    """Tensors by name, names of what else there was, and (name, owner) of tensors that are one memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # of before torch 1.6
    dropped: list[str] = []
    for _ in range(2):  # a checkpoint of a trainer may hold a model, which holds a state dict
        if not isinstance(content, Mapping) or any(torch.is_tensor(value) for value in content.values()):
            break
        inside = [key for key in INSIDE if isinstance(content.get(key), Mapping)]
        if not inside:
            break
        dropped += [str(key)[:80] for key in content if key != inside[0]]
        content = content[inside[0]]
    if torch.is_tensor(content):
        content = {"weights": content}
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds {type(content).__name__}, expected tensors by name")
    tensors: dict[str, Any] = {}
    tied: list[list[str]] = []
    owners: dict[Any, str] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not torch.is_tensor(value):
            dropped.append(str(name)[:80])
            continue
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu" or value.is_nested:
            raise ValueError(f"tensor {name[:80]!r} is sparse, quantised or has no numbers")
        key = value.untyped_storage().data_ptr(), value.storage_offset(), value.stride(), value.shape, value.dtype
        owner = owners.setdefault(key, name) if value.numel() else name
        if owner != name:
            tied.append([name, owner])
        else:
            tensors[name] = value.detach()
    if not tensors:
        raise ValueError(f"it holds no tensors, but {dropped[:5]}")
    return tensors, dropped, tied


def _bytes(torch: Any, tensor: Any) -> memoryview:
    flat = tensor.contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def _answer(out: BinaryIO, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    out.write(len(data).to_bytes(8, "little") + data)
    out.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
