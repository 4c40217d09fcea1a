"""Proof of a symmetry: permuted weights give the same outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weightspace.arrays import few
from weightspace.layout import Layout
from weightspace.symmetry import Permutations, Scales, Symmetry, SymmetryError


@dataclass(frozen=True)
class Proof:
    """What was checked.

    Args:
        error: largest difference of outputs, relative to the largest output.
        groups: permutations that moved together, each drawn at random.
    """

    error: float
    groups: int


def prove_symmetry(
    module: nn.Module,
    symmetry: Symmetry,
    example_inputs: tuple[Any, ...],
    *,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    tolerance: float = 1e-10,
) -> Proof:
    """Move random weights by random permutations and scales, and compare the outputs in float64.

    Every stored tensor is drawn anew, scales, shifts and statistics of norms too, so that no unit is like another.

    Args:
        tolerance: relative. Sums in another order differ by about 1e-16 times their length and depth; a wrong
            permutation changes random outputs in their first digits.

    Raises:
        SymmetryError: outputs differ, or are not finite; names the groups that alone make them differ.
    """
    layout = Layout.from_module(module)
    if layout != symmetry.layout:
        raise SymmetryError(
            f"the symmetry is of another layout ({symmetry.layout.fingerprint}, {symmetry.layout.size} weights) than "
            f"the module ({layout.fingerprint}, {layout.size} weights)"
        )
    trial = _Trial(module, symmetry, example_inputs, kwargs or {}, seed)
    permutations = symmetry.random(1, seed)
    scales = _random_scales(symmetry, seed)
    error = trial.error(permutations, scales)
    if not error <= tolerance:
        raise SymmetryError(
            f"permuted weights change the outputs by {error:.1e} of the largest, more than {tolerance:.0e}; "
            f"groups that do so alone: {few(trial.guilty(permutations, scales, tolerance))}"
        )
    return Proof(error, len(symmetry.moving))


class _Trial:
    """One network with random weights in float64, its inputs and outputs."""

    def __init__(
        self, module: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.symmetry = symmetry
        self.module = copy.deepcopy(module).eval()
        if any(tensor.is_meta for tensor in self.module.state_dict().values()):
            self.module.to_empty(device="cpu")
        self.module.double()
        values = self.module.state_dict()
        self.weights = symmetry.layout.flatten(
            {name: _draw(name, values[name], role, generator) for name, role in _roles(symmetry.layout)}, "float64"
        )[None]
        self.inputs = tuple(_random_input(value, generator) for value in inputs)
        self.kwargs = {name: _random_input(value, generator) for name, value in kwargs.items()}
        self.outputs = self._run(self.weights)

    def _run(self, weights: Tensor) -> list[Tensor]:
        tensors = self.symmetry.layout.unflatten(weights[0], cast=False)
        kinds = self.module.state_dict()
        tensors = {name: value.to(kinds[name].dtype) for name, value in tensors.items()}
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # for tensors that the module makes
        try:
            with torch.no_grad(), _AlwaysDouble():
                outputs = torch.func.functional_call(self.module, tensors, self.inputs, self.kwargs, tie_weights=False)
        except (RuntimeError, TypeError, ValueError) as error:
            raise SymmetryError(f"{type(self.module).__name__} does not run in float64: {error}") from error
        finally:
            torch.set_default_dtype(default)
        leaves = torch.utils._pytree.tree_leaves(outputs)
        return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor)]

    def error(self, permutations: Permutations, scales: Scales) -> float:
        """The largest relative difference of outputs; NaN where they are not finite."""
        moved = self.symmetry.permute(self.weights, permutations) if self.symmetry.moving else self.weights
        moved = self.symmetry.scale(moved, scales)
        errors = [0.0]
        for before, after in zip(self.outputs, self._run(moved), strict=True):
            largest = float(before.abs().max()) if before.numel() else 0.0
            difference = float((before - after).abs().max()) if before.numel() else 0.0
            errors.append(difference / largest if largest else difference)
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    def guilty(self, permutations: Permutations, scales: Scales, tolerance: float) -> list[str]:
        """The groups that change the outputs when nothing else moves."""
        found = []
        for group in self.symmetry.moving:
            alone = self.symmetry.identity(1) | {group: permutations[group]}
            if not self.error(alone, {}) <= tolerance:
                found.append(group)
        for group, factors in scales.items():
            if not self.error(self.symmetry.identity(1), {group: factors}) <= tolerance:
                found.append(f"scales of {group}")
        return found


class _AlwaysDouble(TorchFunctionMode):
    """What a module computes in float32 on purpose, as some norms do, is computed in float64 too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args, kwargs = torch.utils._pytree.tree_map(
            lambda arg: torch.float64 if arg is torch.float32 else arg, (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _roles(layout: Layout) -> list[tuple[str, str]]:
    return list(zip(layout.names, layout.roles, strict=True))


def _draw(name: str, value: Tensor, role: str, generator: torch.Generator) -> Tensor:
    """Random entries: matrices as wide as keeps signals (He), statistics and tables positive, integers as they are."""
    if not value.is_floating_point():
        return value
    if role == "buffer":
        return torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
    spread = math.sqrt(2 * len(value) / value.numel()) if value.ndim > 1 and value.numel() else 0.5
    return torch.randn(value.shape, generator=generator, dtype=torch.float64) * spread


def _random_input(value: Any, generator: torch.Generator) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return value.to("cpu") if isinstance(value, Tensor) else value


def _random_scales(symmetry: Symmetry, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    scales = {}
    for scale in symmetry.scales:
        shape = (1, *symmetry.permutation_shape(scale.group))
        signs = generator.choice([-1.0, 1.0], shape)
        scales[scale.group] = signs if scale.kind == "sign" else generator.uniform(0.5, 2.0, shape)
    return scales
