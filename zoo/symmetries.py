"""The symmetry of each architecture: derived from its trace and proven when it is first asked for."""

from __future__ import annotations

import functools

import torch

from catalog.errors import InvalidSpecError
from weightspace.derive import derive_symmetry, prove_symmetry
from weightspace.symmetry import Symmetry
from zoo.architectures import Architecture

MAX_PROVEN = 2**23  # weights: 64 MiB in float64, some copies of which a proof holds


def symmetry_of(architecture: Architecture) -> Symmetry:
    """What may be permuted and scaled in networks of this architecture without changing their outputs.

    Derived, and proven in float64, at the first call for an architecture. One of more than `MAX_PROVEN` weights is
    proven through a narrow one of its family, whose layers are the same.

    Raises:
        InvalidSpecError: there is nothing to permute (an MLP of depth 0). SymmetryError: the proof failed.

    >>> symmetry_of(Architecture("mlp", {"depth": 2}, (1, 8, 8), 10)).axes["hidden1.weight"]
    ('hidden1', 'hidden0')
    """
    key = (architecture.family, tuple(architecture.numbers.items()), architecture.input_shape, architecture.num_classes)
    return _symmetry(*key)


@functools.lru_cache(maxsize=4096)
def _symmetry(
    family: str, numbers: tuple[tuple[str, object], ...], input_shape: tuple[int, ...], num_classes: int
) -> Symmetry:
    architecture = Architecture(family, dict(numbers), input_shape, num_classes)
    symmetry = _derive(architecture)
    if not symmetry.moving:
        raise InvalidSpecError(
            f"{architecture.name} has no hidden units that could be permuted; aligning it would change nothing"
        )
    proven = architecture if architecture.layout.size <= MAX_PROVEN else narrow(architecture)
    prove_symmetry(proven.build(), symmetry if proven is architecture else _derive(proven), (_example(proven),))
    return symmetry


def _derive(architecture: Architecture) -> Symmetry:
    derived = derive_symmetry(architecture.build("meta"), (_example(architecture, "meta"),))
    assert not derived.unknown, derived.unknown  # our own families use operations that have rules
    return derived.symmetry


def _example(architecture: Architecture, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(2, *architecture.input_shape, device=device)


def narrow(architecture: Architecture) -> Architecture:
    """One of the same family with at most 64 units a layer, and few inputs and classes."""
    numbers = {
        name: min(value, 64) if name in ("width", "channels") else value for name, value in architecture.numbers.items()
    }
    shape = architecture.input_shape
    shape = (min(shape[0], 3), *shape[1:]) if architecture.family == "cnn" else (min(shape[0], 16),)
    return Architecture(architecture.family, numbers, shape, min(architecture.num_classes, 16))
