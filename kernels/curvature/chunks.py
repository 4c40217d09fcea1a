"""How much plain torch works on at once."""

from __future__ import annotations

from torch import Tensor

ROOM = {"cpu": 1 << 23, "cuda": 1 << 27}  # numbers; measured on a CPU, CNNs and MLPs: from here on no faster
SAMPLES = 2048  # at once before models are: few graphs of all samples stay, many of some do not


def room(like: Tensor) -> int:
    """Numbers to be worked on at once where this tensor is."""
    return ROOM.get(like.device.type, ROOM["cpu"])


def parts(each: int, models: int, samples: int, room: int) -> tuple[list[slice], list[slice]]:
    """Chunks of models and of samples, such that `each` numbers a sample and model fit into a room."""
    few = min(samples, SAMPLES)
    together = max(min(models, room // (each * few)), 1)
    most = max(min(samples, room // (each * together)), 1)
    return slices(models, together), slices(samples, most)


def slices(count: int, most: int) -> list[slice]:
    """range(count) in parts of nearly equal size, at most so many."""
    number = -(-count // most)
    return [slice(part * count // number, (part + 1) * count // number) for part in range(number)]
