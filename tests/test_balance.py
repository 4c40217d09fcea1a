from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.hand_symmetries import drawn, flattened, mlp, run_mlp
from weightspace.balance import balance, canonical_signs
from weightspace.rebasin.alignment import AlignmentError
from weightspace.symmetry import Symmetry

NETWORKS = {"mlp": mlp(5, 8, 6, 3), "deep": mlp(4, 6, 6, 6, 6, 6, 2), "flattened": flattened()}


def norms(symmetry: Symmetry, weights: np.ndarray, group: str) -> tuple[np.ndarray, np.ndarray]:
    """Of what goes into each unit of a group of the hand-written networks and of what comes out, by slices."""
    t = symmetry.layout.unflatten(weights.astype(np.float64))
    if group == "c":
        into = np.concatenate([t["conv"][..., 0], t["conv_bias"][..., None]], 2)
        return np.sqrt((into**2).sum(2)), np.sqrt((t["fc"].reshape(len(weights), -1, 4, 3) ** 2).sum((1, 3)))
    names = ("fc", "fc_bias", "head")
    if group != "h":
        n = int(group[1:])
        names = (f"{n}.weight", f"{n}.bias", f"{n + 1}.weight")
    into, out = np.concatenate([t[names[0]], t[names[1]][..., None]], 2), t[names[2]]
    return np.sqrt((into**2).sum(2)), np.sqrt((out**2).sum(1))


def drawn_scales(symmetry: Symmetry, models: int, seed: int = 1, spread: float = 1.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        scale.group: np.exp(spread * generator.normal(size=(models, *symmetry.permutation_shape(scale.group))))
        for scale in symmetry.scales
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_in_and_out_weigh_the_same(name: str) -> None:
    symmetry = NETWORKS[name]
    weights = drawn(symmetry, 4, dtype=np.float64)
    scaled = symmetry.scale(weights, balance(symmetry, weights, exact=True))
    for group in symmetry.moving:
        into, out = norms(symmetry, scaled, group)
        np.testing.assert_allclose(into, out, rtol=1e-6)  # 1e-9 of a scale a pass; a chain of five adds some hundred


@pytest.mark.parametrize("name", NETWORKS)
def test_one_form_whatever_scales_the_weights_came_with(name: str) -> None:
    symmetry = NETWORKS[name]
    weights = drawn(symmetry, 3, dtype=np.float64)
    other = symmetry.scale(weights, drawn_scales(symmetry, 3))
    assert np.abs(other / weights - 1).max() > 1
    found = [symmetry.scale(w, balance(symmetry, w, exact=True)) for w in (weights, other)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)  # as above


def test_of_all_scales_the_least_sum_of_squares() -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 1, dtype=np.float64)
    best = symmetry.scale(weights, balance(symmetry, weights, exact=True))
    least = (best**2).sum()
    for seed in range(20):
        tried = symmetry.scale(best, drawn_scales(symmetry, 1, seed, 0.01))
        assert (tried**2).sum() > least
    assert least < (weights**2).sum()


@pytest.mark.parametrize("exact", [True, False])
def test_the_function_stays(exact: bool) -> None:
    symmetry = NETWORKS["mlp"]
    weights, x = drawn(symmetry, 3), np.random.default_rng(2).normal(size=(7, 5))
    scaled = symmetry.scale(weights, balance(symmetry, weights, exact=exact))
    assert not np.array_equal(scaled, weights)
    outputs, before = run_mlp(symmetry, scaled, x), run_mlp(symmetry, weights, x)
    # powers of two lose nothing; otherwise a float32 rounding a weight, 6e-8 each, of sums of up to 8
    np.testing.assert_allclose(outputs, before, rtol=0, atol=1e-5 if exact else 1e-12)


def test_powers_of_two_come_back_to_the_bit() -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 3)
    scales = balance(symmetry, weights)
    exponents = np.concatenate([np.log2(values).ravel() for values in scales.values()])
    assert np.array_equal(exponents, np.rint(exponents))
    assert np.unique(exponents).size > 1
    back = symmetry.scale(symmetry.scale(weights, scales), scales, inverse=True)
    assert back.tobytes() == weights.tobytes()
    full = balance(symmetry, weights, exact=True)
    for group, values in scales.items():
        assert np.abs(np.log2(values / full[group])).max() <= 0.5 + 1e-9


def test_dead_units_keep_their_scale_and_a_model_does_not_depend_on_others() -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 4)
    tensors = symmetry.layout.unflatten(weights)
    tensors["0.weight"][0, 2], tensors["0.bias"][0, 2] = 0, 0  # nothing goes in
    tensors["2.weight"][1, :, 3] = 0  # nothing comes out
    weights[3] = 0
    scales = balance(symmetry, weights, exact=True)
    assert scales["h0"][0, 2] == 1
    assert scales["h1"][1, 3] == 1
    assert all((values[3] == 1).all() for values in scales.values())
    assert np.isfinite(symmetry.scale(weights, scales)).all()
    for model in range(4):
        alone = balance(symmetry, weights[model : model + 1], exact=True)
        assert all(np.allclose(alone[g][0], scales[g][model], rtol=1e-8) for g in scales)  # passes differ, by 1e-9 each


def test_units_that_hardly_live_give_finite_weights() -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 1)
    tensors = symmetry.layout.unflatten(weights)
    tensors["0.weight"][0, 1], tensors["0.bias"][0, 1] = 1e-38, 0
    scaled = symmetry.scale(weights, balance(symmetry, weights, exact=True))
    assert np.isfinite(scaled).all()


def test_signs_have_one_form_to_the_bit() -> None:
    symmetry = mlp(5, 8, 6, 3, kind="sign")
    weights, x = drawn(symmetry, 4), np.random.default_rng(2).normal(size=(7, 5))
    generator = np.random.default_rng(3)
    flips = {s.group: generator.choice([-1.0, 1.0], (4, symmetry.groups[s.group].size)) for s in symmetry.scales}
    found = [symmetry.scale(w, balance(symmetry, w, signs=True)) for w in (weights, symmetry.scale(weights, flips))]
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0].tobytes() != weights.tobytes()
    np.testing.assert_allclose(
        run_mlp(symmetry, found[0], x, odd=True), run_mlp(symmetry, weights, x, odd=True), rtol=1e-12
    )
    t = symmetry.layout.unflatten(found[0])
    assert ((t["0.weight"].sum(2) + t["0.bias"]) >= 0).all()
    assert balance(symmetry, weights) == {}
    moved = symmetry.random(4)
    signs = canonical_signs(symmetry, weights)
    after = canonical_signs(symmetry, symmetry.permute(weights, moved))
    assert all(np.array_equal(after[g], np.take_along_axis(signs[g], moved[g], 1)) for g in signs)


def test_torch_weights_give_the_same_scales() -> None:
    symmetry = NETWORKS["flattened"]
    weights = drawn(symmetry, 2)
    found, again = balance(symmetry, weights), balance(symmetry, torch.from_numpy(weights))
    assert all(np.array_equal(found[g], again[g]) for g in found)


@pytest.mark.parametrize(("value", "error"), [(np.nan, AlignmentError), (np.inf, AlignmentError), (None, ValueError)])
def test_bad_weights_are_named(value: Any, error: type[Exception]) -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 2)
    if value is None:
        weights = weights[:, :-1]
    else:
        weights[1, 3] = value
    with pytest.raises(error, match="finite" if value is not None else "must be"):
        balance(symmetry, weights)
