"""Derived symmetries: as many groups as the architecture has, and outputs that stay."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalog.errors import InvalidSpecError
from tests.symmetry_models import Dense, Experts, Grouped, PackedViT, ResNet, ShortcutA, ViT
from weightspace.derive import derive_symmetry, prove_symmetry
from weightspace.layout import Layout
from weightspace.symmetry import Group, Symmetry, SymmetryError
from zoo import symmetries
from zoo.architectures import ACTIVATIONS, ARCHITECTURES, NORMS, Architecture
from zoo.symmetries import symmetry_of


def images(side: int = 8, channels: int = 3) -> tuple[Tensor]:
    return (torch.zeros(2, channels, side, side),)


def derived(module: nn.Module, example: tuple[Tensor, ...]) -> Symmetry:
    """The symmetry of a module whose operations are all known, proven with and without float64's last digits."""
    found = derive_symmetry(module, example)
    assert found.unknown == ()
    proof = prove_symmetry(module, found.symmetry, example)
    assert proof.error <= 1e-12  # sums of at most some thousand terms in another order; the proof itself allows 1e-10
    assert proof.groups == len(found.symmetry.moving)
    return found.symmetry


def ours() -> list[Architecture]:
    """Every family with every activation, style and norm, at the sizes where kernels and groups differ."""
    mlps = [
        Architecture("mlp", {"depth": depth, "width": 5, "activation": activation}, (1, 3, 3), 4)
        for depth, activation in itertools.product((1, 3), ACTIVATIONS)
    ]
    cnns = [
        Architecture("cnn", {"style": style, "channels": channels, "norm": norm, "activation": "relu"}, shape, 4)
        for style, norm, (channels, shape) in itertools.product(
            ("model_zoo", "small_cnn_zoo"), NORMS, ((16, (1, 8, 8)), (6, (3, 28, 28)))
        )
    ]
    return mlps + cnns


@pytest.mark.parametrize("architecture", ours(), ids=lambda a: a.name)
def test_every_architecture_of_the_zoo(architecture: Architecture) -> None:
    """One group a hidden layer; GroupNorm makes two of it where it has several groups of channels."""
    symmetry = symmetry_of(architecture)
    module = architecture.build()
    norms = [layer.num_groups > 1 for layer in module.modules() if isinstance(layer, nn.GroupNorm)]
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(symmetry.moving) == len(layers) - 1 + sum(norms)
    assert {name.split(".")[0] for name in symmetry.moving} == set(layers[:-1])
    # every hidden layer may be scaled but those whose norm has two groups, and those with smooth activations
    scalable = 0 if architecture.numbers["activation"] in ("gelu", "silu") else len(layers) - 1 - sum(norms)
    assert len(symmetry.scales) == scalable
    assert {scale.kind for scale in symmetry.scales} <= {
        {"tanh": "sign"}.get(architecture.numbers["activation"], "positive")
    }


def test_all_families_are_tried() -> None:
    assert {architecture.family for architecture in ours()} == set(ARCHITECTURES)


def test_no_hidden_layer_is_a_typed_error() -> None:
    with pytest.raises(InvalidSpecError, match="no hidden units"):
        symmetry_of(Architecture("mlp", {"depth": 0}, (1, 3, 3), 4))


def test_of_one_unit_a_layer_nothing_moves() -> None:
    with pytest.raises(InvalidSpecError, match="no hidden units"):
        symmetry_of(Architecture("mlp", {"depth": 2, "width": 1}, (1, 3, 3), 4))


def test_wide_architectures_are_proven_through_a_narrow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetries, "MAX_PROVEN", 100)
    wide = Architecture("mlp", {"width": 77, "depth": 1}, (2, 7, 11), 4)
    assert symmetries.narrow(wide).layout.size < wide.layout.size
    assert symmetry_of(wide).moving == {"hidden0": Group(77)}


def test_symmetries_are_derived_once() -> None:
    first, again = (Architecture("mlp", {"width": 6}, (1, 3, 3), 4) for _ in range(2))
    assert symmetry_of(first) is symmetry_of(again)


@pytest.mark.parametrize(
    ("blocks", "bottleneck"), [((2, 2, 2, 2), False), ((3, 4, 6, 3), True)], ids=["resnet18", "resnet50"]
)
def test_residual_networks(blocks: tuple[int, ...], bottleneck: bool) -> None:
    """One group a stage for the residual stream, one for each convolution inside a block.

    The stem is the stream of the first stage, unless bottlenecks make that four times as wide.
    """
    symmetry = derived(ResNet(blocks, bottleneck, width=4), images(32))
    inner = 2 if bottleneck else 1
    assert len(symmetry.moving) == len(blocks) + inner * sum(blocks) + bottleneck
    assert all(group.parent is None for group in symmetry.moving.values())
    assert symmetry.axes["layer2.1.bn1.running_var"] == ("layer2.1.conv1",)
    assert symmetry.axes["fc.weight"] == (None, symmetry.axes["layer4.0.downsample.1.weight"][0])
    assert len(symmetry.scales) == len(symmetry.moving)  # scales and shifts of BatchNorm, before a ReLU


def test_shortcut_of_zero_channels() -> None:
    """The stage behind it is a sum: new channels, the old ones, new channels; of the new ones all shortcuts are 0."""
    symmetry = derived(ShortcutA(), images())
    assert symmetry.axes["conv2.bias"] == ("conv2.0 + stem + conv2.1",)
    assert {name: group.size for name, group in symmetry.moving.items()} == {
        "stem": 4, "conv1": 8, "conv2.0": 2, "conv2.1": 2,
    }  # fmt: skip


@pytest.mark.parametrize("layers", [1, 3])
def test_concatenation(layers: int) -> None:
    symmetry = derived(Dense(layers), images(channels=2))
    assert len(symmetry.moving) == 1 + layers
    parts = ["stem", *(f"layers.{n}.2" for n in range(layers))]
    assert symmetry.axes["fc.weight"] == (None, " + ".join(parts))


def test_grouped_and_depthwise_convolutions() -> None:
    """Four groups of channels move as wholes, and inside each inputs and outputs; depthwise and transposed plain."""
    symmetry = derived(Grouped(), images())
    assert symmetry.axes["grouped.weight"] == ("stem.0 grouped", "stem.1", None, None)
    assert symmetry.groups["grouped"] == Group(3, "stem.0")
    assert symmetry.axes["depthwise.weight"] == ("mix", None, None, None)
    assert symmetry.axes["up.weight"] == ("mix", "up", None, None)
    assert len(symmetry.moving) == 5


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    "build", [ViT, PackedViT, lambda layers: PackedViT(layers, fused=False)], ids=["torch", "packed", "packed eager"]
)
def test_vision_transformers(build: Callable[[int], nn.Module], layers: int) -> None:
    """The residual stream; a layer has heads, rows of queries and keys, rows of values, hidden units."""
    symmetry = derived(build(layers), images())
    assert len(symmetry.moving) == 1 + 4 * layers
    heads = [name for name in symmetry.moving if name.endswith(".heads")]
    assert len(heads) == layers
    assert sum(group.parent in heads for group in symmetry.moving.values()) == 2 * layers
    assert not symmetry.scales  # GELU


def test_packed_projections_are_parts() -> None:
    symmetry = derived(PackedViT(1), images())
    assert symmetry.axes["blocks.0.qkv.bias"] == (
        "blocks.0.heads blocks.0.qk + blocks.0.heads blocks.0.qk + blocks.0.heads blocks.0.vo",
    )


def test_multihead_attention_alone() -> None:
    x = torch.zeros(2, 5, 12)
    symmetry = derived(nn.MultiheadAttention(12, 3, batch_first=True), (x, x, x))
    assert symmetry.moving == {"heads": Group(3), "qk": Group(4, "heads"), "vo": Group(4, "heads")}
    assert symmetry.axes["out_proj.weight"] == (None, "heads vo")


def test_multihead_attention_with_other_widths() -> None:
    """Three projections, and a row for keys and values that is no input."""
    module = nn.MultiheadAttention(12, 3, kdim=7, vdim=9, add_bias_kv=True)
    symmetry = derived(module, (torch.zeros(5, 2, 12), torch.zeros(4, 2, 7), torch.zeros(4, 2, 9)))
    assert len(symmetry.moving) == 3
    assert symmetry.axes["bias_v"] == (None, None, "heads vo")


def test_experts_have_units_of_their_own() -> None:
    symmetry = derived(Experts(), (torch.zeros(2, 4),))
    experts, hidden = symmetry.axes["shift"][0], symmetry.axes["shift"][2]
    assert symmetry.groups[str(hidden)] == Group(6, experts)
    assert len(symmetry.moving) == 3


class Odd(nn.Module):
    """One hidden layer, and an operation on it."""

    def __init__(self, operation: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, width), nn.LazyLinear(2)
        self.operation = operation
        self(torch.zeros(2, 3))  # makes the last layer as wide as what comes

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.operation(self.enter(x)))


FIXING = {
    "cumsum": lambda x: x.cumsum(1),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "softmax of parts": lambda x: x.view(-1, 2, 3).softmax(1).mean((1, 2))[:, None],
    "constant table": lambda x: x * torch.arange(6.0),
    "buffer": lambda x: x + x.new_tensor([1.0, 2, 3, 4, 5, 6]),
    "every second": lambda x: x[:, ::2],
    "weights of its own": lambda x: x @ torch.arange(36.0).view(6, 6),
    "argmax": lambda x: x.argmax(1, keepdim=True).to(x.dtype),
    "sort": lambda x: x.sort(1).values,
    "scatter": lambda x: torch.zeros_like(x).index_add(1, torch.tensor([0, 0, 1, 2, 3, 4]), x),
    "in place through a view": lambda x: _write(x),
    "groups across copies": lambda x: F.group_norm(x[:, 1:5].repeat_interleave(3, 1), 3),
    "running sums of copies": lambda x: x[:, :2].repeat_interleave(3, 1).cumsum(1),
    "parts that overlap": lambda x: torch.cat([x[:, 5:], x[:, 1:5], x[:, :1]], 1) + torch.cat([x[:, 2:], x[:, :2]], 1),
    "queries, keys and values in turn": lambda x: x.view(-1, 2, 3) * x.view(-1, 2, 3)[:, :, 1:2].softmax(1),
}


def _write(x: Tensor) -> Tensor:
    x = x.relu()
    x[:, :2] *= torch.arange(2.0)
    return x


@pytest.mark.parametrize("name", FIXING)
def test_what_is_not_equivariant_is_safe(name: str) -> None:
    """Whatever these find, permuting it leaves the outputs."""
    module = Odd(lambda x: FIXING[name](x).flatten(1))
    found = derive_symmetry(module, (torch.zeros(2, 3),)).symmetry
    assert prove_symmetry(module, found, (torch.zeros(2, 3),)).error <= 1e-12
    assert sum(group.size for group in found.moving.values()) < 6, "all six units cannot be free here"


FREE = {
    "softmax": (lambda x: x.softmax(1), [6]),
    "normalised": (lambda x: F.normalize(x, dim=1), [6]),
    "halves": (lambda x: torch.cat([x[:, 3:], x[:, :3]], 1), [3, 3]),
    "gate": (lambda x: F.glu(x, 1), [3]),
    "first three": (lambda x: x[:, :3], [3, 3]),
    "blocks": (lambda x: x.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6), [2, 3]),
    "block maximum": (lambda x: x.view(-1, 2, 3).amax(2), [2, 3]),
    "copies": (lambda x: x.repeat(1, 2), [2, 6]),  # what reads them may swap them
    "rows repeated": (lambda x: x.repeat_interleave(2, 1), [2, 6]),
    "in place": (lambda x: x.relu().add_(x), [6]),
    "accumulated": (lambda x: torch.zeros_like(x).add_(x), [6]),
    "outer product": (lambda x: torch.einsum("bi,bj->bij", x, x).flatten(1), [6]),
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_equivariant_stays_free(name: str) -> None:
    operation, sizes = FREE[name]
    symmetry = derived(Odd(operation), (torch.zeros(2, 3),))
    assert sorted(group.size for group in symmetry.moving.values()) == sorted(sizes)


def test_parents_are_dropped_where_an_operation_works_across_them() -> None:
    """A softmax over blocks compares the same place of each block: one permutation for all blocks is left."""
    symmetry = derived(Odd(lambda x: x.view(-1, 2, 3).softmax(1).flatten(1)), (torch.zeros(2, 3),))
    assert sorted((group.size, group.parent) for group in symmetry.moving.values()) == [(2, None), (3, None)]


def test_unknown_operations_are_reported_and_hold_their_axes() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), Sorting(), nn.Linear(5, 2))
    found = derive_symmetry(module, (torch.zeros(2, 3),))
    assert found.unknown == (("aten.sort.default", "3"),)
    assert found.symmetry.moving == {"0.weight": Group(4)}
    assert prove_symmetry(module, found.symmetry, (torch.zeros(2, 3),)).groups == 1


class Sorting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1).values


def test_recurrent_layers_are_reported() -> None:
    found = derive_symmetry(nn.LSTM(2, 3), (torch.zeros(4, 1, 2),))
    assert found.unknown == (("aten.lstm.input", ""),)
    assert not found.symmetry.axes


def test_nothing_moves_in_a_linear_map() -> None:
    found = derive_symmetry(nn.Linear(3, 2), (torch.zeros(2, 3),))
    assert (found.symmetry.axes, found.symmetry.moving, found.symmetry.scales) == ({}, {}, ())
    assert prove_symmetry(nn.Linear(3, 2), found.symmetry, (torch.zeros(2, 3),)).error == 0


def test_a_module_is_left_as_it_was() -> None:
    module = ResNet((1,), width=4).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    derived(module, images())
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_untraceable_modules_are_a_typed_error() -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(SymmetryError, match="cannot trace Untraceable"):
        derive_symmetry(Untraceable(), (torch.ones(2, 3),))


# --- the proof refuses what is wrong


def without(symmetry: Symmetry, tensor: str) -> Symmetry:
    """The symmetry with a tensor left out."""
    axes = {name: entry for name, entry in symmetry.axes.items() if name != tensor}
    return Symmetry(symmetry.layout, axes, symmetry.groups)


@pytest.mark.parametrize(
    ("build", "example", "tensor"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (torch.zeros(2, 3),), "0.bias"),
        (lambda: ResNet((1, 1), width=4), images(16), "layer2.0.downsample.1.running_mean"),
        (lambda: ResNet((1, 1), width=4), images(16), "layer1.0.bn1.running_var"),
        (lambda: ViT(1), images(), "pos_embedding"),
        (lambda: PackedViT(1), images(), "blocks.0.norm1.weight"),
        (lambda: Grouped(), images(), "depthwise.bias"),
    ],
    ids=["mlp", "resnet mean", "resnet variance", "positions", "norm", "depthwise"],
)
def test_the_proof_refuses_an_axis_left_out(
    build: Callable[[], nn.Module], example: tuple[Tensor, ...], tensor: str
) -> None:
    module = build()
    symmetry = derive_symmetry(module, example).symmetry
    group = next(word for axis in symmetry.axes[tensor] if axis for word in axis.split() if word in symmetry.moving)
    with pytest.raises(SymmetryError, match=f"change the outputs.*alone: .*{group}"):
        prove_symmetry(module, without(symmetry, tensor), example)


def test_the_proof_refuses_scales_that_do_not_fit() -> None:
    """What holds for ReLU does not for GELU."""
    relu, gelu = (nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)) for layer in (nn.ReLU(), nn.GELU()))
    symmetry = derive_symmetry(relu, (torch.zeros(2, 3),)).symmetry
    prove_symmetry(relu, symmetry, (torch.zeros(2, 3),))
    with pytest.raises(SymmetryError, match=r"alone: 'scales of 0\.weight'"):
        prove_symmetry(gelu, symmetry, (torch.zeros(2, 3),))


def test_the_proof_refuses_another_layout() -> None:
    symmetry = derive_symmetry(nn.Linear(3, 2), (torch.zeros(2, 3),)).symmetry
    with pytest.raises(SymmetryError, match="another layout"):
        prove_symmetry(nn.Linear(2, 2), symmetry, (torch.zeros(2, 2),))


def test_the_proof_refuses_outputs_that_are_not_finite() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0

    with pytest.raises(SymmetryError, match="nan"):
        prove_symmetry(Broken(), Symmetry(Layout((), ()), {}), (torch.ones(2, 3),))


def test_names_are_the_same_in_every_order_of_derivation() -> None:
    first, second = (derive_symmetry(ViT(1), images()).symmetry for _ in range(2))
    assert first == second
    assert first.fingerprint == second.fingerprint
