"""What every generator must beat: simple ways to make networks from those that are there."""

from __future__ import annotations

from generators.kind import Kind

BASELINES: dict[str, Kind] = {}
