"""What compiled weight matching knows of a symmetry: groups of units, and which parts of the flat vector they move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Block:
    """A part of the flat vector, moved by at most two groups: element (i, k, s) lies at offset + i * stride_a + k *
    stride_b + inner[s].

    Args:
        a, b: numbers of two different groups, -1 for none; b only beside a.
        size_a, size_b: units of the groups; 1 where there is none.
        inner: (entries,) int64, what each pair of units has: positions of a convolution, inputs, a bias.
    """

    offset: int
    a: int
    size_a: int
    stride_a: int
    b: int
    size_b: int
    stride_b: int
    inner: np.ndarray

    @property
    def last(self) -> int:
        """The largest place of an element."""
        units = (self.size_a - 1) * self.stride_a + (self.size_b - 1) * self.stride_b
        return self.offset + units + int(self.inner.max())


@dataclass(frozen=True, eq=False)
class Problem:
    """Groups that may be permuted, and all parts of the vector that count for the objective.

    Args:
        sizes: units of each group.
        blocks: those that no group moves add the same to every objective.

    Raises:
        ValueError: a block names a group that is not there, the same group twice, or another size.
    """

    sizes: tuple[int, ...]
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        for block in self.blocks:
            for group, size in ((block.a, block.size_a), (block.b, block.size_b)):
                if not -1 <= group < len(self.sizes) or size != (self.sizes[group] if group >= 0 else 1):
                    raise ValueError(f"a block of group {group} with {size} units fits none of {self.sizes}")
            if block.b >= 0 and block.a in (-1, block.b):
                raise ValueError(f"the groups of a block must differ, and the first is named first, got {block}")
            if not block.inner.size or block.inner.dtype != np.int64 or block.offset + int(block.inner.min()) < 0:
                raise ValueError(f"inner offsets must be one or more int64 inside the vector, got {block.inner}")
