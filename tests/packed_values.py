"""What the tests of packed zoos share: any bits as weights, and whether two arrays have the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from catalog.grid import PACKED, STORED_AS, Grid

ROOT = Path(__file__).resolve().parent.parent
ARCHIVES = sorted((ROOT / "tests" / "data").glob("format1-*"))
dtypes = st.sampled_from(sorted(STORED_AS))
MIB = 1 << 20
GRID = Grid((2, 3, 50), (2, 3, 50), (2, 3, 50), "float32", PACKED)
SPECIAL = [0, 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x80000000, 0x80000001, 0x007FFFFF]


def bits_of(shape: tuple[int, ...], dtype: str, seed: int, finite: bool = False) -> np.ndarray:
    """Any bits, as the stored type: NaN with payloads, infinities, subnormals, both zeros, unless finite."""
    chosen = np.random.default_rng(seed)
    size = np.dtype(STORED_AS[dtype]).itemsize
    bits = chosen.integers(0, 2 ** (8 * size), shape, dtype=f"u{size}")
    bits = np.where(
        chosen.random(shape) < 0.3, np.array(SPECIAL)[chosen.integers(0, 10, shape)].astype(bits.dtype), bits
    )
    if finite:
        exponent = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}[dtype]
        bits = np.where(bits & exponent == exponent, bits ^ exponent, bits).astype(bits.dtype)
    return bits.view(STORED_AS[dtype])


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    kind = f"u{one.itemsize}"
    return np.array_equal(np.ascontiguousarray(one).view(kind), np.ascontiguousarray(other).view(kind))
