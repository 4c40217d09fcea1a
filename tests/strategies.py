"""Hypothesis strategies that several test files share: what a population can look like, odd cases included."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from weightspace.layout import FLOATS, INTEGERS, ROLES, Layout

names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
"""Any name a tensor may have."""

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
"""Scalars and empty tensors among them."""

batches = st.lists(st.integers(0, 3), max_size=3).map(tuple)
"""Leading axes: none, one, several, empty ones."""

seeds = st.integers(0, 2**32 - 1)


@st.composite
def layouts(draw: st.DrawFn, max_tensors: int = 5) -> Layout:
    """Layouts with all dtypes, roles and aliases; also the one without tensors."""
    stored = draw(st.lists(names, max_size=max_tensors, unique=True))
    count = len(stored)
    tied = draw(st.lists(names.filter(lambda name: name not in stored), max_size=2 if stored else 0, unique=True))
    return Layout(
        tuple(stored),
        tuple(draw(st.lists(shapes, min_size=count, max_size=count))),
        tuple(draw(st.lists(st.sampled_from(FLOATS + INTEGERS), min_size=count, max_size=count))),
        tuple(draw(st.lists(st.sampled_from(ROLES), min_size=count, max_size=count))),
        tuple((name, draw(st.sampled_from(stored))) for name in tied),
    )


def population(layout: Layout, batch: tuple[int, ...] = (), seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Weights (*batch, size), float32, every number another one: a mixed-up order cannot pass for the right one."""
    count = math.prod(batch) * layout.size
    return np.random.default_rng(seed).permutation(count).astype(np.float32).reshape(*batch, layout.size)
