"""Scale symmetries beside the permutations: which units may be multiplied by s where they are made, and by 1/s where
they are used (ReLU: s > 0; odd activations: s = +-1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightspace.derive.terms import Atom, find, flat
from weightspace.derive.values import Value

POSITIVE, SIGN = "positive", "sign"


@dataclass(eq=False)
class Node:
    """Values that are multiplied together.

    Args:
        kinds: which factors the operations on the way allow; none if they must be 1.
        entries: (tensor, axis, exponent).
        link: the node that it was united with.
    """

    kinds: set[str] = field(default_factory=lambda: {POSITIVE, SIGN})
    entries: list[tuple[str, int, int]] = field(default_factory=list)
    link: Node | None = None


def root(node: Node) -> Node:
    while node.link is not None:
        node = node.link
    return node


@dataclass
class Scaler:
    """Follows, beside the axes, by which units each value is multiplied: value -> (its node, the units' axis)."""

    nodes: list[Node] = field(default_factory=list)
    at: dict[Value, tuple[Node, Atom]] = field(default_factory=dict)

    def stop(self, values: Iterable[Value]) -> None:
        """These values must not be multiplied."""
        for value in values:
            if value in self.at:
                root(self.at[value][0]).kinds.clear()

    def follow(self, name: str, args: Sequence[Any], out: Any) -> None:
        """What an operation does to the factors; one that is not known here stops them."""
        values = [value for arg in args for value in (arg if isinstance(arg, list | tuple) else [arg])]
        values = [value for value in values if isinstance(value, Value)]
        if name in KEEP and isinstance(out, Value) and values[0] in self.at:
            node, units = self.at[values[0]]
            root(node).kinds &= KEEP[name]
            self.at[out] = node, units
            self.stop(values[1:])
        elif name in MAKE and isinstance(args[1], Value):
            self._use(args[0], args[1], MAKE[name])
            self._make(out, MAKE[name], args[1:3])
        elif name == "add" and isinstance(args[1], Value):
            self._add(args[0], args[1], out)
        elif name in ("mul", "div") and isinstance(out, Value):
            self._multiply(name, args[0], args[1], out)
        elif name in NORMS:
            channel, first = NORMS[name]
            self.stop(values[:1])
            self._make(out, channel, args[first : first + 2])
        else:
            self.stop(values)

    def _use(self, x: Value, weight: Value, channel: int) -> None:
        """A linear map divides what comes in by what it was multiplied with."""
        if x not in self.at:
            return
        node, units = self.at[x]
        summed = x.axes[channel if channel < 0 or x.ndim > 3 else -weight.ndim + 1]
        if weight.tensor is None or find(units) not in flat(summed):
            self.stop([x])
        else:
            root(node).entries.append((weight.tensor, 1, -1))

    def _make(self, out: Value, channel: int, tensors: Sequence[Any]) -> None:
        """The output of a layer may be multiplied through its weight and bias."""
        node, names = Node(), [t.tensor for t in tensors if isinstance(t, Value)]
        units = flat(out.axes[channel])
        if not names or None in names or len(units) != 1:
            return
        node.entries += [(str(name), 0, 1) for name in names]
        self.nodes.append(node)
        self.at[out] = node, units[0]

    def _add(self, a: Value, b: Value, out: Value) -> None:
        """Both terms of a sum are multiplied alike."""
        if a not in self.at or b not in self.at:
            self.stop([a, b])
            return
        (first, units), (second, others) = self.at[a], self.at[b]
        first, second = root(first), root(second)
        if find(units) is not find(others):
            self.stop([a, b])
            return
        if first is not second:
            first.kinds &= second.kinds
            first.entries += second.entries
            second.link = first
        self.at[out] = first, units

    def _multiply(self, name: str, a: Any, b: Any, out: Value) -> None:
        """A product is multiplied as one of its factors is; two at once would need a sum of exponents."""
        held = [value for value in (a, b) if isinstance(value, Value) and value in self.at]
        if len(held) == 1 and (name == "mul" or held[0] is a):
            self.at[out] = self.at[held[0]]
        else:
            self.stop(held)


BOTH = frozenset({POSITIVE, SIGN})
_ALLOW = {
    frozenset({POSITIVE}): "relu leaky_relu prelu rrelu max_pool1d max_pool2d max_pool3d",
    frozenset({SIGN}): "tanh asinh sin sinh erf softsign tan atan hardshrink",
    BOTH: "dropout feature_dropout flatten view reshape contiguous clone alias detach to _to_copy squeeze unsqueeze "
    "unflatten permute transpose neg positive avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d",
}
KEEP = {name: kinds for kinds, names in _ALLOW.items() for name in names.split()}  # operation -> factors it passes on
# Layers whose weight has outputs on axis 0 and inputs on axis 1 -> the axis of their input that they sum over.
MAKE = {"linear": -1, "conv1d": 1, "conv2d": 1, "conv3d": 1}
# Norms: the axis of their channels, and which argument is their scale; their shift comes next.
NORMS = {"batch_norm": (1, 1), "layer_norm": (-1, 2), "group_norm": (1, 2), "rms_norm": (-1, 2)}
