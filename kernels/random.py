"""Counter-based random numbers: a value is a function of (key, site, step, position, index) and nothing drawn before.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3). The same code serves
numpy and torch arrays: 32-bit words ride in int64, whose products wrap modulo 2**64 in both.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from scipy.special import ndtri

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, added to the key each round


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Four 32-bit words for each counter and key.

    Args:
        counter: four int64 arrays (numpy or torch, all of one kind) of 32-bit words that broadcast together.
        key: two more.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((right >> 32) & MASK) ^ c1 ^ k0, right & MASK
        c2, c3 = ((left >> 32) & MASK) ^ c3 ^ k1, left & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def words(key: Any, site: int, step: Any = 0, position: Any = 0, *, count: int) -> Any:
    """Uniform 32-bit words.

    Args:
        key: (...), int64, numpy or torch: 64 bits a stream (numpy uint64 is viewed as int64).
        site: which use this is; different sites of a key are independent.
        step, position: integers below 2**32 that broadcast with `key`.

    Returns:
        (..., count), int64 in [0, 2**32), of the library of `key`.
    """
    blocks, stack, broadcast = -(-count // 4), np.stack, np.broadcast_arrays  # four words a block
    index: Any
    if isinstance(key, np.ndarray):
        key, index = key.view(np.int64), np.arange(blocks, dtype=np.int64)
        step, position = np.asarray(step, np.int64), np.asarray(position, np.int64)
    else:
        import torch

        index = torch.arange(blocks, device=key.device)
        step, position = (torch.as_tensor(value, dtype=torch.int64, device=key.device) for value in (step, position))
        stack, broadcast = cast(Any, (torch.stack, torch.broadcast_tensors))
    k, s, p = (value[..., None] for value in broadcast(key, step, position))
    drawn = philox((index, site + 0 * index, s & MASK, p & MASK), (k & MASK, (k >> 32) & MASK))
    whole = stack(broadcast(*drawn), -1)
    return whole.reshape(*whole.shape[:-2], 4 * blocks)[..., :count]


def uniform(key: np.ndarray, site: int, step: Any = 0, *, count: int) -> np.ndarray:
    """Floats in (0, 1), (..., count), float64, on a grid of 2**32 midpoints."""
    return np.asarray((words(key, site, step, count=count) + 0.5) * 2.0**-32)


def normal(key: np.ndarray, site: int, step: Any = 0, *, count: int) -> np.ndarray:
    """Standard normals, (..., count), float64, by the inverse distribution function."""
    return np.asarray(ndtri(uniform(key, site, step, count=count)))


def permutation(
    key: np.ndarray, site: int, step: Any = 0, *, count: int, length: np.ndarray | None = None
) -> np.ndarray:
    """Random orders of range(count), (..., count), int64.

    Args:
        length: (...), permute only range(length) of each; the rest of the row follows in its own order.
    """
    keys = words(key, site, step, count=count)
    if length is not None:
        keys = np.where(np.arange(count) < length[..., None], keys, MASK)
    tagged = (keys << 31) | np.arange(count)  # one sort orders by word, ties by index
    tagged.sort(axis=-1)
    return np.asarray(tagged & (2**31 - 1))


def keep_mask(key: Any, site: int, step: Any, position: Any, threshold: Any, *, count: int) -> Any:
    """Which of `count` features survive dropout, (..., count), bool.

    Args:
        threshold: ceil(rate * 2**32), int64; a word below it drops. Integers compare alike in every backend.
    """
    return words(key, site, step, position, count=count) >= threshold
