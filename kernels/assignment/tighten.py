"""Prices and gaps in float64 in compiled code, for solutions that were found in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.programs import Program, sources
from kernels.threads import in_parts

# Costs and prices are finite here, so that minima may be taken in any order.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "nsz", "contract"}}


def _tighten(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def tighten(
        costs: np.ndarray, factors: np.ndarray, columns: np.ndarray, v: np.ndarray, allowed: np.ndarray, rounds: int,
        gaps: np.ndarray,
    ) -> int:  # fmt: skip
        """Lower the prices until no exchange gains; rounds that took, of all problems.

        Args:
            costs: (batch, n, n) float32 or float64. v: (batch, n) float64, changed. factors, allowed,
                gaps: (batch,) float64.
        """
        digest  # noqa: B018  # makes it a part of the function
        batch, n = v.shape
        total = 0
        for problem in range(batch):
            cost, factor, chosen, prices = costs[problem], factors[problem], columns[problem], v[problem]
            for number in range(rounds + 1):
                gap = 0.0
                for i in range(n):
                    row, least = cost[i], np.inf
                    for j in range(n):
                        least = min(least, row[j] * factor - prices[j])
                    gap += row[chosen[i]] * factor - prices[chosen[i]] - least
                gaps[problem] = gap
                if gap <= allowed[problem] or number == rounds:
                    break
                total += 1
                for i in range(n):
                    row = cost[i]
                    u = row[chosen[i]] * factor - prices[chosen[i]]
                    for j in range(n):
                        prices[j] = min(prices[j], row[j] * factor - u)
        return total

    return tighten


TIGHTEN = Program(_tighten, sources("assignment/tighten.py"), OPTIONS)


def tighten(
    cost: np.ndarray, factors: np.ndarray, columns: np.ndarray, v: np.ndarray, allowed: np.ndarray, rounds: int,
    threads: int = 1,
) ->  tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Prices (batch, n) float64 that prove as much as they can, and the gaps (batch,) float64 that they leave.

    For any prices v no assignment totals less than sum_j v_j + sum_i min_j (c_ij - v_j). Prices are lowered, row by
    row, to v_j <= c_ij - u_i with u_i that of the row's own column: shortest paths of exchanges (Bellman-Ford) from v.

    Args:
        cost: (batch, n, n) float32 or float64. factors: (batch,) float64; the problem is cost times factor.
        columns: (batch, n) int32. v: (batch, n), where to begin.
        allowed: (batch,), gaps at which a problem is done. rounds: at most so many times over all rows.
    """
    prices, gaps = np.array(v, np.float64, order="C"), np.zeros(len(cost))

    def work(part: slice) -> None:
        TIGHTEN(cost[part], factors[part], columns[part], prices[part], allowed[part], rounds, gaps[part])

    in_parts(work, len(cost), threads)
    return prices, gaps
