from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.hand_symmetries import drawn, flattened, heads, mlp, run_mlp, shuffled
from weightspace.balance import balance
from weightspace.rebasin.alignment import AlignmentError
from weightspace.rebasin.frank_wolfe import _along, _gradient, _mixed, _view
from weightspace.rebasin.universe import METHODS, agreement, align_universe, between, join
from weightspace.symmetry import Symmetry, plain
from zoo.architectures import Architecture
from zoo.symmetries import symmetry_of

NETWORKS = {"mlp": mlp(6, 10, 10, 4), "flattened": flattened(6, 3, 8)}


def sum_over_pairs(symmetry: Symmetry, weights: np.ndarray) -> float:
    """One pair after the other, of the tensors that move, mean."""
    part = weights[:, symmetry.layout.indices(symmetry.axes)].astype(np.float64)
    return float(np.mean([part[a] @ part[b] for a, b in itertools.combinations(range(len(part)), 2)]))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_planted_permutations_are_recovered(method: str, name: str) -> None:
    symmetry = NETWORKS[name]
    weights = shuffled(symmetry, drawn(symmetry, 1)[0], 7)
    found = align_universe(symmetry, weights, method=method, restarts=2)
    canonical = symmetry.permute(weights, found.permutations)
    assert (canonical == canonical[:1]).all()
    np.testing.assert_array_equal(found.universe, canonical[0])
    assert found.finished.all()


@pytest.mark.parametrize("method", METHODS)
def test_agreement_rises_and_is_what_it_says(method: str) -> None:
    symmetry = NETWORKS["mlp"]
    weights, rounds = drawn(symmetry, 6), []
    found = align_universe(
        symmetry, weights, method=method, start=symmetry.identity(6), on_round=lambda _, value: rounds.append(value)
    )
    canonical = symmetry.permute(weights, found.permutations)
    assert rounds == sorted(rounds)
    assert agreement(symmetry, weights) < rounds[0]
    assert len(rounds) == found.sweeps[0] > 1
    assert agreement(symmetry, canonical) == pytest.approx(sum_over_pairs(symmetry, canonical), rel=1e-12)
    if method == "barycentre":
        assert rounds[-1] == pytest.approx(agreement(symmetry, canonical), rel=1e-6)  # sums of float32 canonical models
    np.testing.assert_allclose(found.universe, canonical.mean(0), rtol=1e-5, atol=1e-6)
    places = symmetry.layout.indices(symmetry.axes)
    mean = canonical[:, places].astype(np.float64).mean(0)
    np.testing.assert_allclose(found.after, canonical[:, places] @ mean, rtol=1e-5)
    np.testing.assert_allclose(found.before, weights[:, places] @ mean, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_with_one_hidden_layer_the_best_of_all_orders_is_found(method: str) -> None:
    symmetry = mlp(2, 3, 2, kind=None)
    for seed in range(5):
        weights = drawn(symmetry, 3, seed)
        orders = [np.array(p, np.int32)[None] for p in itertools.permutations(range(3))]
        ways = [np.concatenate([symmetry.permute(weights[k : k + 1], {"h0": p}) for p in orders]) for k in range(3)]
        best = max(
            sum_over_pairs(symmetry, np.stack([ways[0][0], ways[1][a], ways[2][b]]))
            for a, b in itertools.product(range(6), repeat=2)
        )
        found = align_universe(symmetry, weights, method=method, restarts=2, tolerance=0)
        value = sum_over_pairs(symmetry, symmetry.permute(weights, found.permutations))
        assert value == pytest.approx(best, rel=1e-6)


def test_no_model_can_come_nearer_to_the_mean_of_the_others() -> None:
    """What MergeMany ends with: here by all 24 orders of each group of each model."""
    symmetry = mlp(3, 4, 4, 2)
    weights = drawn(symmetry, 5, 3)
    found = align_universe(symmetry, weights, tolerance=0)
    assert found.finished.all()
    canonical = symmetry.permute(weights, found.permutations)
    orders = [np.array(p, np.int32)[None] for p in itertools.permutations(range(4))]
    for model, (name, p) in itertools.product(range(5), itertools.product(("h0", "h1"), orders)):
        trial = canonical.copy()
        trial[model : model + 1] = symmetry.permute(canonical[model : model + 1], symmetry.identity(1) | {name: p})
        assert sum_over_pairs(symmetry, trial) <= sum_over_pairs(symmetry, canonical) + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_maps_around_a_cycle_undo_each_other(method: str) -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 4)
    found = align_universe(symmetry, weights, method=method)
    there, on, back = (between(symmetry, found.permutations, a, b) for a, b in ((0, 1), (1, 2), (2, 0)))
    around = symmetry.compose(symmetry.compose(there, on), back)
    assert all(np.array_equal(around[name], p) for name, p in symmetry.identity(1).items())
    assert any(not np.array_equal(there[name], p) for name, p in symmetry.identity(1).items())
    canonical = symmetry.permute(weights, found.permutations)
    second = symmetry.pick(found.permutations, slice(1, 2))
    moved = symmetry.permute(symmetry.permute(weights[:1], there), second)
    np.testing.assert_array_equal(moved, canonical[:1])


def test_the_functions_stay_and_scales_come_first() -> None:
    symmetry = NETWORKS["mlp"]
    weights, x = drawn(symmetry, 4), np.random.default_rng(1).normal(size=(9, 6))
    scales = balance(symmetry, weights, exact=True)
    found = align_universe(symmetry, weights, scales=scales)
    canonical = symmetry.permute(symmetry.scale(weights, found.scales), found.permutations)
    # a float32 rounding for each weight in sums of ten, twice
    np.testing.assert_allclose(run_mlp(symmetry, canonical, x), run_mlp(symmetry, weights, x), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.universe, canonical.mean(0), rtol=1e-5, atol=1e-6)


def test_new_members_change_nothing_for_the_old_ones_and_do_not_depend_on_each_other() -> None:
    symmetry = NETWORKS["mlp"]
    one = drawn(symmetry, 1)[0]
    weights = shuffled(symmetry, one, 12, noise=[0.3] * 12)
    found = align_universe(symmetry, weights[:8])
    kept = {name: p.copy() for name, p in found.permutations.items()}
    universe = found.universe.tobytes()
    together = join(symmetry, weights[8:], found.universe)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        for model in order:
            alone = join(symmetry, weights[8 + model : 9 + model], found.universe)
            assert all(np.array_equal(p[0], together.permutations[n][model]) for n, p in alone.permutations.items())
    assert found.universe.tobytes() == together.universe.tobytes() == universe
    assert all(np.array_equal(p, found.permutations[name]) for name, p in kept.items())
    members = join(symmetry, weights[:8], found.universe, start=found.permutations)
    assert (members.after >= found.after - 1e-4).all()
    canonical = symmetry.permute(weights[8:], together.permutations)
    assert (np.linalg.norm(canonical - found.universe, axis=1) < 0.5 * np.linalg.norm(one)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_is_that_of_autograd_and_the_line_is_the_sum_over_pairs(name: str) -> None:
    symmetry = NETWORKS[name]
    weights = torch.from_numpy(drawn(symmetry, 3, dtype=np.float64))
    generator = torch.Generator().manual_seed(0)

    def mixes() -> dict[str, torch.Tensor]:
        return {
            n: torch.rand(3, g.size, g.size, generator=generator, dtype=torch.float64).softmax(-1)
            for n, g in symmetry.moving.items()
        }

    def total(at: dict[str, torch.Tensor]) -> torch.Tensor:
        """Half the sum over ordered pairs."""
        value = torch.zeros((), dtype=torch.float64)
        for block in blocks:
            axes = {i: g for i, (g, _, _) in enumerate(block.dims) if g}
            moved = _mixed(_view(block, weights, slice(None)), at, axes, slice(None)).flatten(1)
            value = value + sum(moved[a] @ moved[b] for a, b in itertools.combinations(range(3), 2))
        return value

    blocks = [block for block in symmetry.blocks if block.groups]
    here, there = mixes(), mixes()
    for mix in here.values():
        mix.requires_grad_()
    expected = torch.autograd.grad(total(here), list(here.values()))
    with torch.no_grad():
        found = _gradient(symmetry, blocks, weights, here)
        for (group, value), truth in zip(found.items(), expected, strict=True):
            torch.testing.assert_close(value, truth, msg=group)
        coefficients = _along(symmetry, blocks, weights, here, there)
        for t in (0.0, 0.3, 1.0):
            middle = {g: mix.lerp(there[g], t) for g, mix in here.items()}
            assert np.polyval(coefficients[::-1], t) == pytest.approx(2 * float(total(middle)), rel=1e-10)


def test_a_group_on_both_axes_of_a_tensor() -> None:
    symmetry = plain({"in": ("h", None), "step": ("h", "h")}, {"in": (5, 3), "step": (5, 5)})
    weights = shuffled(symmetry, drawn(symmetry, 1)[0], 4)
    found = align_universe(symmetry, weights, method="frank_wolfe", restarts=3)
    canonical = symmetry.permute(weights, found.permutations)
    assert (canonical == canonical[:1]).all()


def test_units_inside_units_by_the_barycentre_alone() -> None:
    symmetry = heads()
    weights = shuffled(symmetry, drawn(symmetry, 1)[0], 4)
    found = align_universe(symmetry, weights, restarts=2)
    canonical = symmetry.permute(weights, found.permutations)
    assert (canonical == canonical[:1]).all()
    with pytest.raises(AlignmentError, match=r"'qk', 'vo'.*barycentre"):
        align_universe(symmetry, weights, method="frank_wolfe")


def test_repeatable_with_any_threads_and_torch_or_numpy() -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 5)
    found = [
        align_universe(symmetry, given, seed=3, threads=threads)
        for given, threads in ((weights, 1), (weights, 2), (torch.from_numpy(weights), 1))
    ]
    for other in found[1:]:
        assert all(np.array_equal(p, other.permutations[name]) for name, p in found[0].permutations.items())
        assert other.universe.tobytes() == found[0].universe.tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_one_model_equal_models_dead_units_and_no_time(method: str) -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 3)
    alone = align_universe(symmetry, weights[:1], method=method)
    assert alone.finished.all()
    np.testing.assert_array_equal(alone.universe, symmetry.permute(weights[:1], alone.permutations)[0])
    assert agreement(symmetry, weights[:1]) == pytest.approx(float(alone.after[0]), rel=1e-5)
    same = align_universe(symmetry, np.repeat(weights[:1], 3, 0), method=method)
    np.testing.assert_allclose(same.after, alone.after[0], rtol=1e-6)
    weights[:, :30] = 0
    symmetry.check(align_universe(symmetry, weights, method=method).permutations, 3)
    hurried = align_universe(symmetry, weights, method=method, budget=0.0)
    symmetry.check(hurried.permutations, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "mean"}, "barycentre, frank_wolfe"),
        ({"restarts": -1}, "0 or more"),
        ({"weights": np.full((2, 202), np.nan, np.float32)}, "finite"),
        ({"weights": np.zeros((2, 7), np.float32)}, "202"),
        ({"weights": np.zeros((0, 202), np.float32)}, "a model or more"),
        ({"start": {}}, "start"),
        ({"symmetry": plain({}, {"w": (202,)})}, "no groups"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"symmetry": mlp(6, 10, 10, 2), "weights": np.ones((2, 202), np.float32)} | change
    symmetry, weights = given.pop("symmetry"), given.pop("weights")
    with pytest.raises(AlignmentError, match=message):
        align_universe(symmetry, weights, **given)


def test_buffers_move_along_and_have_no_say() -> None:
    """Variances of thousands on units that trade places: by all tensors they would decide who goes where."""
    architecture = Architecture("cnn", {"style": "small_cnn_zoo", "channels": 8, "norm": "batch"}, (1, 8, 8), 10)
    symmetry = symmetry_of(architecture)
    generator = np.random.default_rng(0)
    models = generator.normal(size=symmetry.layout.size) + 0.05 * generator.normal(size=(6, symmetry.layout.size))
    variances = symmetry.layout.tensor(models, "norm1.running_var")
    variances[:] = generator.uniform(1e3, 1e5, variances.shape)
    planted = symmetry.random(6, 1)
    found = align_universe(symmetry, symmetry.permute(models, planted))
    back = symmetry.permute(symmetry.permute(models, planted), found.permutations)
    frame = symmetry.compose(symmetry.pick(planted, slice(1)), symmetry.pick(found.permutations, slice(1)))
    same = {name: np.repeat(p, 6, 0) for name, p in frame.items()}
    np.testing.assert_array_equal(back, symmetry.permute(models, same))
    np.testing.assert_allclose(found.universe, back.mean(0), rtol=1e-12)
