"""Symmetries derived from a traced module, and proven by output equality."""

from weightspace.derive.derive import Derived, derive_symmetry
from weightspace.derive.prove import Proof, prove_symmetry

__all__ = ["Derived", "Proof", "derive_symmetry", "prove_symmetry"]
