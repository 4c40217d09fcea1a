"""Weight matching: planted permutations, a plain port as a peer, and what must hold for any population."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.families import FAMILIES, mlp
from benchmarks.planted import plain_port
from kernels.population import forward
from weightspace.derive.derive import derive_symmetry
from weightspace.layout import Layout
from weightspace.rebasin.alignment import Alignment, AlignmentError
from weightspace.rebasin.descent import descend
from weightspace.rebasin.estimate import estimate
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import objective
from weightspace.rebasin.starts import has_stream
from weightspace.rebasin.straight_through import refine_straight_through
from weightspace.symmetry import Permutations, Symmetry, plain

MLP = mlp(8)


def pairs(symmetry: Symmetry, models: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """References and models that have nothing to do with each other, float32."""
    drawn = np.random.default_rng(seed).normal(size=(2, models, symmetry.layout.size)).astype(np.float32)
    return drawn[0], drawn[1]


def moved(symmetry: Symmetry, weights: Any, found: Alignment) -> Any:
    return symmetry.permute(weights, found.permutations)


@pytest.mark.parametrize("impl", [None, "reference"])
@pytest.mark.parametrize(("family", "width"), [("mlp", 32), ("cnn", 8), ("resnet", 6), ("vit", 16)])
def test_planted_permutations_are_recovered(family: str, width: int, impl: str | None) -> None:
    network = FAMILIES[family](width)
    weights = network.random_weights(20, seed=1)
    planted = network.symmetry.permute(weights, network.symmetry.random(20, seed=2))
    assert not torch.equal(planted, weights)

    found = match_weights(network.symmetry, planted, weights, impl=impl)

    assert torch.equal(moved(network.symmetry, planted, found), weights)
    assert found.finished.all()
    np.testing.assert_allclose(found.after, objective(network.symmetry, weights, weights), rtol=1e-12)  # sums of 1e4


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_symmetry_that_is_written_for_them(family: str) -> None:
    network = FAMILIES[family](8)
    weights = network.random_weights(3).double()
    planted = network.symmetry.permute(weights, network.symmetry.random(3))
    inputs = torch.randn(4, *network.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = network.outputs(weights, inputs)
    torch.testing.assert_close(network.outputs(planted, inputs), outputs, rtol=1e-10, atol=1e-10)  # the bound
    derived = derive_symmetry(network.module, (inputs.float(),)).symmetry
    assert groups_of(derived) == groups_of(network.symmetry)


def groups_of(symmetry: Symmetry) -> Counter[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Size and tensors of each group, whatever it is called."""
    tensors = {name: tuple(block.tensor for block in symmetry.touching(name)) for name in symmetry.moving}
    return Counter((symmetry.permutation_shape(name), tensors[name]) for name in symmetry.moving)


def test_restarts_find_what_one_descent_misses() -> None:
    symmetry = mlp(8, depth=4).symmetry
    narrow = plain(symmetry.axes, {n: (s[0], 4) if n == "hidden0.weight" else s for n, s in shapes(symmetry).items()})
    weights, _ = pairs(narrow, 20, seed=5)
    planted = narrow.permute(weights, narrow.random(20, seed=6))

    def recovered(**options: Any) -> int:
        found = match_weights(narrow, planted, weights, **options)
        return int((moved(narrow, planted, found) == weights).all(1).sum())

    once = recovered()
    assert once < 20
    assert recovered(restarts=5, impl="reference") == recovered(restarts=5) == 20


def shapes(symmetry: Symmetry) -> dict[str, tuple[int, ...]]:
    return dict(zip(symmetry.layout.names, symmetry.layout.shapes, strict=True))


@pytest.mark.parametrize("impl", ["compiled", "reference"])
def test_objective_is_never_below_that_of_a_plain_port(impl: str) -> None:
    symmetry = mlp(12, depth=3).symmetry
    a, b = pairs(symmetry, 12)
    b = a + 0.7 * b  # as near as trained networks are, where descents do not end anywhere
    b = symmetry.permute(b, symmetry.random(len(b)))
    found = match_weights(symmetry, b, a, impl=impl, seed=3)
    orders = [plain_port(symmetry, x, y, seed=3) for x, y in zip(a, b, strict=True)]
    theirs = objective(symmetry, symmetry.permute(b, {n: np.stack([p[n] for p in orders]) for n in symmetry.moving}), a)
    assert (found.after >= theirs * (1 - 1e-9)).all()  # sums of 1e3 products in another order
    assert (found.after > found.before).all()


def test_both_implementations_find_the_same() -> None:
    symmetry = mlp(16).symmetry
    a, b = pairs(symmetry, 10)
    compiled, reference = (match_weights(symmetry, b, a, impl=impl) for impl in ("compiled", "reference"))
    for name in symmetry.moving:
        np.testing.assert_array_equal(compiled.permutations[name], reference.permutations[name])
    np.testing.assert_allclose(compiled.before, reference.before, rtol=1e-12)
    np.testing.assert_allclose(compiled.after, reference.after, rtol=1e-12)  # sums in another order
    assert compiled.finished.all()
    assert reference.finished.all()


@pytest.mark.parametrize("family", ["mlp", "resnet", "vit"])
def test_the_objective_never_falls_and_is_what_it_says(family: str) -> None:
    symmetry = FAMILIES[family](8).symmetry
    a, b = pairs(symmetry, 4)
    start = symmetry.random(4, seed=3)
    last = objective(symmetry, symmetry.permute(b, start), a)
    for sweeps in (0, 1, 2, 3, 100):
        found = match_weights(symmetry, b, a, start=start, sweeps=sweeps)
        assert (found.after >= last).all()
        worth = objective(symmetry, moved(symmetry, b, found), a)
        np.testing.assert_allclose(found.after, worth, rtol=1e-12)  # compiled code sums in another order
        np.testing.assert_array_equal(found.before, objective(symmetry, b, a))
        assert (found.sweeps <= sweeps).all()
        last = found.after
    assert found.finished.all()


@pytest.mark.parametrize(("family", "impl"), [("mlp", "compiled"), ("mlp", "reference"), ("vit", "reference")])
def test_a_model_does_not_depend_on_its_companions(family: str, impl: str) -> None:
    symmetry = FAMILIES[family](8).symmetry
    a, b = pairs(symmetry, 7)
    together = match_weights(symmetry, b, a[0], impl=impl, restarts=2)
    for some in (slice(0, 1), slice(2, 5)):
        alone = match_weights(symmetry, b[some], a[0], impl=impl, restarts=2)
        for name in symmetry.moving:
            np.testing.assert_array_equal(alone.permutations[name], together.permutations[name][some])
        np.testing.assert_array_equal(alone.after, together.after[some])
        np.testing.assert_array_equal(alone.sweeps, together.sweeps[some])


def test_a_group_on_both_axes_of_a_tensor() -> None:
    """Recurrent weights: the objective is quadratic in the order of their units."""
    sizes = {"inputs": (12, 3), "recurrent": (12, 12), "outputs": (2, 12)}
    symmetry = plain({"inputs": ("h", None), "recurrent": ("h", "h"), "outputs": (None, "h")}, sizes)
    weights, others = pairs(symmetry, 20)
    planted = symmetry.permute(weights, symmetry.random(20))
    found = match_weights(symmetry, planted, weights, restarts=5)
    assert (moved(symmetry, planted, found) == weights).all()
    found = match_weights(symmetry, others, weights)
    assert (found.after >= found.before).all()
    assert found.after.mean() > found.before.mean() + 20  # of a norm of 200
    a, b = torch.from_numpy(weights), torch.from_numpy(others)
    last = found.before
    for sweeps in range(1, 6):  # the slope overshoots: steps that lower the objective are not taken
        value = objective(symmetry, descend(symmetry, b, a, names=["h"], sweeps=sweeps).moved, a)
        assert (value >= last - 1e-12 * np.abs(last)).all()  # rounding of sums
        last = value
    with pytest.raises(AlignmentError, match="compiled code takes"):
        match_weights(symmetry, others, weights, impl="compiled")


@pytest.mark.parametrize(
    ("chosen", "still"),
    [
        ({"groups": ["hidden1"]}, {"hidden0"}),
        ({"layers": ["output"]}, {"hidden0"}),
        ({"layers": ["hidden0.bias"]}, {"hidden1"}),
    ],
)
@pytest.mark.parametrize("impl", ["compiled", "reference"])
def test_part_of_the_groups(chosen: dict[str, Any], still: set[str], impl: str) -> None:
    a, b = pairs(MLP.symmetry, 5)
    start = MLP.symmetry.random(5)
    found = match_weights(MLP.symmetry, b, a, start=start, restarts=1, impl=impl, **chosen)
    for name in MLP.symmetry.moving:
        assert np.array_equal(found.permutations[name], start[name]) == (name in still)
    assert (found.after > objective(MLP.symmetry, MLP.symmetry.permute(b, start), a)).all()


@pytest.mark.parametrize("family", ["mlp", "vit"])
def test_without_time_the_start_comes_back(family: str) -> None:
    symmetry = FAMILIES[family](8).symmetry
    a, b = pairs(symmetry, 3)
    start = symmetry.random(3)
    found = match_weights(symmetry, b, a, start=start, restarts=3, budget=0, heads="singular")
    for name in symmetry.moving:
        np.testing.assert_array_equal(found.permutations[name], start[name])
    assert not found.finished.any()
    assert not found.sweeps.any()
    assert match_weights(symmetry, b, a, budget=600).finished.all()


@pytest.mark.parametrize("impl", ["compiled", "reference"])
def test_dead_and_duplicate_neurons(impl: str) -> None:
    symmetry = mlp(16).symmetry
    a, _ = pairs(symmetry, 4)
    for vector in a:
        layer, bias = symmetry.layout.tensor(vector, "hidden0.weight"), symmetry.layout.tensor(vector, "hidden0.bias")
        after = symmetry.layout.tensor(vector, "hidden1.weight")
        layer[:6], bias[:6], after[:, :6] = 0, 0, 0
        layer[8:12], bias[8:12] = layer[8], bias[8]
        after[:, 8:12] = after[:, 8:9]
    planted = symmetry.permute(a, symmetry.random(4))
    found = match_weights(symmetry, planted, a, impl=impl)
    assert (moved(symmetry, planted, found) == a).all()  # which of equal neurons is which leaves no trace
    assert found.finished.all()
    assert match_weights(symmetry, 0 * a, a, impl=impl).finished.all()


def test_width_one_and_populations_of_one_and_none() -> None:
    thin = mlp(1).symmetry
    a, b = pairs(thin, 3)
    for impl in ("compiled", "reference"):
        found = match_weights(thin, b, a[0], impl=impl)
        assert found.finished.all()
        np.testing.assert_array_equal(found.after, found.before)
    a, b = pairs(MLP.symmetry, 1)
    assert match_weights(MLP.symmetry, b, a[0]).after > objective(MLP.symmetry, b, a[0])
    for impl in ("compiled", "reference"):
        none = match_weights(MLP.symmetry, b[:0], a[0], impl=impl, restarts=1)
        MLP.symmetry.check(none.permutations, 0)
        assert none.after.shape == (0,)


def test_half_precision_and_torch() -> None:
    a, b = pairs(MLP.symmetry, 3)
    narrow = b.astype(np.float16)
    half = match_weights(MLP.symmetry, narrow, a[0].astype(np.float16))
    wide = match_weights(MLP.symmetry, torch.from_numpy(narrow).float(), torch.from_numpy(a[0]).half().float())
    np.testing.assert_array_equal(half.after, wide.after)
    assert half.universe.dtype == np.float32
    brain = torch.from_numpy(b).bfloat16()
    found = match_weights(MLP.symmetry, brain, a[0])
    np.testing.assert_array_equal(found.after, match_weights(MLP.symmetry, brain.float().numpy(), a[0]).after)
    double = match_weights(MLP.symmetry, b.astype(np.float64), a[0])  # not for compiled code: the reference is chosen
    np.testing.assert_allclose(double.before, match_weights(MLP.symmetry, b, a[0]).before, rtol=1e-12)  # sums of 1e3


def test_progress_counts_all_models() -> None:
    a, b = pairs(MLP.symmetry, 9)
    seen: list[int] = []
    match_weights(MLP.symmetry, b, a[0], on_models=seen.append)
    assert sum(seen) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.full((2, MLP.symmetry.layout.size), np.nan, np.float32)}, r"models 0, 1 are not"),
        ({"weights": np.zeros((2, 5), np.float32)}, r"must be \(models, size\) with size 682, got \(2, 5\)"),
        ({"weights": np.zeros(682, np.float32)}, r"got \(682,\)"),
        ({"weights": np.zeros((2, 682), np.int64)}, "got int64"),
        ({"weights": "weights"}, "got 'weights'"),
        ({"reference": np.full(682, np.inf, np.float32)}, "the reference must be finite"),
        ({"reference": np.zeros((3, 682), np.float32)}, "one for each of 2 models, got 3"),
        ({"groups": ["hiden0"]}, "no moving groups 'hiden0'; there are 'hidden0', 'hidden1'"),
        ({"layers": ["hidden7"]}, "no layer or tensor 'hidden7'"),
        ({"start": {"hidden0": np.zeros((2, 8), np.int64)}}, "the start does not fit"),
        ({"heads": "both"}, "heads must be one of joint, singular, plain"),
        ({"impl": "cuda"}, "got 'joint', 'cuda'"),
        ({"restarts": -1}, "restarts"),
        ({"symmetry": Symmetry(Layout(("w",), ((682,),)), {})}, "no groups to permute"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    good = {"weights": np.ones((2, 682), np.float32), "reference": np.ones(682, np.float32)}
    given = {"symmetry": MLP.symmetry} | good | change
    with pytest.raises(AlignmentError, match=message):
        match_weights(given.pop("symmetry"), given.pop("weights"), given.pop("reference"), **given)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layerwise_order_alone_finds_planted_permutations(family: str) -> None:
    network = FAMILIES[family](8)
    weights = network.random_weights(5)
    for name, shape in shapes(network.symmetry).items():
        if len(shape) == 1:  # else biases alone would tell all units apart
            network.symmetry.layout.tensor(weights, name)[...] = 1
    planted = network.symmetry.permute(weights, network.symmetry.random(5))
    found = match_weights(network.symmetry, planted, weights, layerwise=True, sweeps=0)
    assert torch.equal(moved(network.symmetry, planted, found), weights)


def test_the_objective_counts_what_moves() -> None:
    symmetry = plain({"a": ("h", None), "b": (None, "h")}, {"a": (2, 2), "still": (3,), "b": (1, 2)})
    weights = np.arange(9.0)[None]
    assert objective(symmetry, weights, weights[0]).tolist() == [0 + 1 + 4 + 9 + 49 + 64]
    assert objective(symmetry, weights, 2 * weights).tolist() == [2 * 127]


def test_residual_streams_are_told_from_chains() -> None:
    found = {name: has_stream(s, list(s.moving)) for name, f in FAMILIES.items() for s in [f(8).symmetry]}
    assert found == {"mlp": False, "cnn": False, "resnet": True, "vit": True}


def test_cost_is_told_before() -> None:
    few, many = (estimate(MLP.symmetry, models, impl="reference") for models in (10, 1_000_000))
    assert 0 < few.seconds < many.seconds
    assert few.bytes < many.bytes <= 2**28 + 682 * 4  # what is worked on at once, not the population
    a, b = pairs(MLP.symmetry, 3)
    assert estimate(MLP.symmetry, 10**9, weights=b, reference=a[0], budget=5.0).seconds == 5.0
    with pytest.raises(AlignmentError, match="no moving groups"):
        estimate(MLP.symmetry, 5, groups=["nothing"])


def cross_entropy(weights: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(models,) of MLP, on inputs and labels."""
    logits = forward(MLP.module, MLP.symmetry.layout.unflatten(weights), batch[0], shared=True)
    return torch.stack([torch.nn.functional.cross_entropy(one, batch[1]) for one in logits])


def test_straight_through_lowers_the_loss_half_way() -> None:
    symmetry = MLP.symmetry
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 64, generator=generator), torch.randint(0, 10, (64,), generator=generator)
    batches = [(x[:32], y[:32]), (x[32:], y[32:])]
    weights = MLP.random_weights(6, seed=7)
    start = symmetry.random(5, seed=1)
    found = refine_straight_through(
        symmetry, weights[1:], weights[0], batches, cross_entropy, start=start, epochs=4, learning_rate=0.03
    )

    def middle(permutations: Permutations) -> np.ndarray:
        halves = (symmetry.permute(weights[1:], permutations) + weights[0]) / 2
        return torch.stack([cross_entropy(halves, batch) for batch in batches]).double().mean(0).numpy()

    np.testing.assert_allclose(found.before, middle(start), rtol=1e-6)  # float32
    np.testing.assert_allclose(found.after, middle(found.alignment.permutations), rtol=1e-6)
    assert (found.after <= found.before).all()
    assert found.after.mean() < found.before.mean() - 0.01
    one = refine_straight_through(symmetry, weights[1:], weights[0], batches, cross_entropy, epochs=0)
    matched = match_weights(symmetry, weights[1:], weights[0])
    for name in symmetry.moving:
        np.testing.assert_array_equal(one.alignment.permutations[name], matched.permutations[name])
    with pytest.raises(AlignmentError, match="one number for each of 5 models"):
        refine_straight_through(symmetry, weights[1:], weights[0], batches, lambda w, b: cross_entropy(w, b).mean())
    with pytest.raises(AlignmentError, match="needs batches"):
        refine_straight_through(symmetry, weights[1:], weights[0], [], cross_entropy)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_planted_permutations_are_recovered_on_a_gpu(family: str) -> None:
    network = FAMILIES[family](16)
    weights = network.random_weights(20).cuda()
    planted = network.symmetry.permute(weights, network.symmetry.random(20))
    found = match_weights(network.symmetry, planted, weights)
    assert torch.equal(moved(network.symmetry, planted, found), weights)
    alone = match_weights(network.symmetry, planted.cpu(), weights.cpu(), impl="reference")
    np.testing.assert_allclose(found.after, alone.after, rtol=1e-12)  # float64 sums in another order
