"""Groups inside the units of others: attention heads, grouped convolutions, norms of groups."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks.families import vit
from weightspace.layout import Layout
from weightspace.rebasin.heads import inside, joint_order, singular_order
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import objective
from weightspace.rebasin.steps import plan_steps
from weightspace.symmetry import Group, Permutations, Symmetry


def hand(tensors: dict[str, tuple[tuple[int, str | None], ...]], groups: dict[str, Group]) -> Symmetry:
    """A symmetry from size and expression of each axis."""
    layout = Layout(tuple(tensors), tuple(tuple(size for size, _ in axes) for axes in tensors.values()))
    return Symmetry(layout, {name: tuple(text for _, text in axes) for name, axes in tensors.items()}, groups)


def attention(heads: int, size: int, stream: int) -> Symmetry:
    """One attention layer behind a small embedding, so that most of the stream's weights are the layer's."""
    rows, out = heads * size, stream
    return hand(
        {
            "embed": ((stream, "stream"), (4, None)),
            "query": ((rows, "heads qk"), (stream, "stream")),
            "key": ((rows, "heads qk"), (stream, "stream")),
            "value": ((rows, "heads vo"), (stream, "stream")),
            "bias": ((rows, "heads vo"),),
            "out": ((out, "stream"), (rows, "heads vo")),
        },
        {"heads": Group(heads), "qk": Group(size, "heads"), "vo": Group(size, "heads"), "stream": Group(stream)},
    )


GROUPED = hand(  # a grouped convolution between two others: groups move with what is inside on both sides
    {
        "before": ((12, "groups in"), (5, None), (3, None)),
        "scale": ((12, "groups in"),),
        "grouped": ((9, "groups out"), (4, "in"), (3, None)),
        "after": ((6, "last"), (9, "groups out")),
        "head": ((2, None), (6, "last")),
    },
    {"groups": Group(3), "in": Group(4, "groups"), "out": Group(3, "groups"), "last": Group(6)},
)
NORM = hand(  # GroupNorm: channels move inside groups, groups as wholes
    {
        "conv": ((12, "norm channels"), (3, None)),
        "shift": ((12, "norm channels"),),
        "next": ((8, "more"), (12, "norm channels"), (3, None)),
        "head": ((2, None), (8, "more")),
    },
    {"norm": Group(4), "channels": Group(3, "norm"), "more": Group(8)},
)
NESTED = hand(  # units inside units inside units
    {"w": ((24, "a b c"), (6, None)), "v": ((5, "d"), (24, "a b c")), "u": ((2, None), (5, "d"))},
    {"a": Group(2), "b": Group(3, "a"), "c": Group(4, "b"), "d": Group(5)},
)
SQUARE = hand(  # a residual stream with GroupNorm: the same groups on both axes of a convolution
    {
        "stem": ((12, "norm channels"), (8, None)),
        "beside": ((12, "norm channels"), (12, "norm channels"), (2, None)),
        "head": ((3, None), (12, "norm channels")),
    },
    {"norm": Group(4), "channels": Group(3, "norm")},
)
HELD = hand(  # heads that stay, as those of a grouped norm in front of fixed channels would
    {"w": ((12, "a b"), (6, None)), "v": ((5, None), (12, "a b"))}, {"a": Group(3, fixed=True), "b": Group(4, "a")}
)
SYMMETRIES = {
    "attention": attention(3, 4, 8), "grouped": GROUPED, "norm": NORM, "nested": NESTED, "square": SQUARE, "held": HELD,
}  # fmt: skip


def drawn(symmetry: Symmetry, models: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(models, symmetry.layout.size)).astype(np.float32)


@pytest.mark.parametrize("heads", ["joint", "singular"])
@pytest.mark.parametrize("name", SYMMETRIES)
def test_planted_orders_of_units_inside_units_are_recovered(name: str, heads: str) -> None:
    symmetry = SYMMETRIES[name]
    weights = drawn(symmetry, 20)
    planted = symmetry.permute(weights, symmetry.random(20, seed=1))
    found = match_weights(symmetry, planted, weights, heads=heads, layerwise=True)
    np.testing.assert_array_equal(symmetry.permute(planted, found.permutations), weights)


def test_what_lies_inside_a_unit_that_stands_on_both_axes() -> None:
    """Cut at the unit on one axis, channels of the other axis lie in any group, and stay."""
    (step,) = plan_steps(SQUARE, ["norm", "channels"])
    assert not step.exact
    within = inside(SQUARE, step.places, step.children)
    assert list(within.axes.values()) == [
        ("channels", None),
        ("channels", None, None, None),
        (None, None, "channels", None),
        (None, "channels"),
    ]
    assert within.layout.shapes == ((3, 8), (3, 4, 3, 2), (4, 3, 3, 2), (3, 3))


def test_one_level_at_a_time_finds_less() -> None:
    """Orders within heads cannot be told while the heads are in the wrong order, and the reverse."""
    symmetry = attention(6, 6, 24)
    weights = drawn(symmetry, 20)
    planted = symmetry.permute(weights, symmetry.random(20, seed=1))

    def recovered(heads: str) -> int:
        found = match_weights(symmetry, planted, weights, heads=heads, layerwise=True)
        return int((symmetry.permute(planted, found.permutations) == weights).all(1).sum())

    assert (recovered("joint"), recovered("singular")) == (20, 20)
    assert recovered("plain") < 20
    others = drawn(symmetry, 20, seed=2)
    joint, plain = (match_weights(symmetry, others, weights, heads=h, layerwise=True).after for h in ("joint", "plain"))
    assert joint.mean() > plain.mean()


def test_a_whole_transformer_needs_the_layerwise_start() -> None:
    symmetry = vit(24, heads=3, depth=2).symmetry
    weights = drawn(symmetry, 10)
    for name in ("patches.weight", "positions"):  # what ties the stream to inputs is small beside the blocks
        symmetry.layout.tensor(weights, name)[...] *= 0.1
    planted = symmetry.permute(weights, symmetry.random(10, seed=1))

    def recovered(layerwise: bool | None) -> int:
        found = match_weights(symmetry, planted, weights, layerwise=layerwise)
        return int((symmetry.permute(planted, found.permutations) == weights).all(1).sum())

    assert recovered(False) < 10
    assert recovered(None) == 10


def test_the_joint_step_is_the_best_of_all_orders() -> None:
    symmetry = attention(2, 3, 4)
    a, b = (torch.from_numpy(drawn(symmetry, 3, seed)) for seed in (1, 2))
    (step,) = [step for step in plan_steps(symmetry, ["heads", "qk", "vo"])]
    assert step.exact
    found = joint_order(symmetry, step.places, step.children, a, b)
    value = objective(symmetry, symmetry.permute(b, symmetry.identity(3) | found), a)

    inner = list(itertools.permutations(range(3)))
    every = list(itertools.product(itertools.permutations(range(2)), *[inner] * 4))
    orders = {
        "heads": np.array([order for order, *_ in every]),
        "qk": np.array([(q0, q1) for _, q0, q1, _, _ in every]),
        "vo": np.array([(v0, v1) for *_, v0, v1 in every]),
        "stream": symmetry.identity(len(every))["stream"],
    }
    for model in range(3):
        trials = symmetry.permute(b[model].expand(len(every), -1), orders)
        assert value[model] == pytest.approx(objective(symmetry, trials, a[model]).max(), rel=1e-12)  # rounding of sums


def test_pairs_of_units_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    symmetry = attention(5, 3, 6)
    a, b = drawn(symmetry, 4), drawn(symmetry, 4, seed=1)
    whole = match_weights(symmetry, b, a)
    monkeypatch.setattr("weightspace.rebasin.heads.PAIRED", 2 * symmetry.layout.size)
    parts = match_weights(symmetry, b, a)
    for name in symmetry.moving:
        np.testing.assert_array_equal(parts.permutations[name], whole.permutations[name])


def test_singular_values_do_not_see_orders_within_heads_or_of_the_stream() -> None:
    symmetry = attention(4, 5, 9)
    a = drawn(symmetry, 3)
    b = a + 0.2 * drawn(symmetry, 3, seed=1)
    shuffled = symmetry.random(3, seed=2)
    inside = shuffled | {"heads": symmetry.identity(3)["heads"]}
    reference = torch.from_numpy(a)
    seen = [
        singular_order(symmetry, "heads", reference, torch.from_numpy(symmetry.permute(b, p)))
        for p in (symmetry.identity(3), inside, shuffled)
    ]
    np.testing.assert_array_equal(seen[0], np.tile(np.arange(4), (3, 1)))
    np.testing.assert_array_equal(seen[1], seen[0])
    np.testing.assert_array_equal(seen[2], np.argsort(shuffled["heads"], -1))


@pytest.mark.parametrize("heads", ["joint", "singular", "plain"])
@pytest.mark.parametrize("name", SYMMETRIES)
def test_no_way_to_order_heads_loses_anything(name: str, heads: str) -> None:
    symmetry = SYMMETRIES[name]
    a, b = drawn(symmetry, 5), drawn(symmetry, 5, seed=1)
    start = symmetry.random(5, seed=2)
    before = objective(symmetry, symmetry.permute(b, start), a)
    found = match_weights(symmetry, b, a, start=start, heads=heads)
    assert (found.after >= before).all()
    assert found.finished.all()
    symmetry.check(found.permutations, 5)


def test_heads_alone_or_what_is_inside_alone() -> None:
    symmetry = attention(3, 4, 8)
    a, b = drawn(symmetry, 5), drawn(symmetry, 5, seed=1)
    start = symmetry.random(5, seed=3)  # one where no order of three heads is the best already
    for groups in (["heads"], ["qk"], ["heads", "vo"], ["qk", "vo"]):
        found = match_weights(symmetry, b, a, start=start, groups=groups)
        gained = found.after - objective(symmetry, symmetry.permute(b, start), a)
        assert (gained > 0).all()
        if "heads" not in groups:
            np.testing.assert_array_equal(found.permutations["heads"], start["heads"])
        else:  # what is inside moves with its head, in the order that it has
            np.testing.assert_array_equal(
                found.permutations["qk"], np.take_along_axis(start["qk"], moved_heads(start, found.permutations), 1)
            )


def moved_heads(start: Permutations, found: Permutations) -> np.ndarray:
    """Where each head was under the start, (models, heads, 1)."""
    back = np.argsort(start["heads"], -1)
    return np.take_along_axis(back, found["heads"], -1)[:, :, None]
