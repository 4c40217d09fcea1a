"""A module as a graph of ATen operations, and the walk through it that follows axes."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from weightspace.derive.operations import RULES, elementwise, unknown, values_in
from weightspace.derive.scales import Scaler
from weightspace.derive.terms import WILD, fix, leaves, movable
from weightspace.derive.values import Value, parameter, unknown_value
from weightspace.layout import Layout
from weightspace.symmetry import SymmetryError

# Which axis of a stored tensor an operation makes its output's from: tells which tensor a group is named after.
PRODUCES = {
    "linear": 0, "conv1d": 0, "conv2d": 0, "conv3d": 0, "conv_transpose1d": 1, "conv_transpose2d": 1,
    "conv_transpose3d": 1, "addmm": -1, "mm": -1, "matmul": -1, "bmm": -1, "embedding": -1,
}  # fmt: skip


def export(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], functional: bool = False
) -> ExportedProgram:
    """The module in eval mode as a graph.

    Args:
        functional: no operation changes a value in place; otherwise elementwise ones may, where no view sees it.
    """
    modes = {part: part.training for part in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        module.eval()
        with warnings.catch_warnings():  # what export says of itself is no concern of those who derive
            warnings.simplefilter("ignore")
            try:
                program = torch.export.export(module, args, dict(kwargs), strict=False)
            except Exception as error:  # torch.export raises whatever the module and the tracer raise
                raise SymmetryError(
                    f"torch.export cannot trace {type(module).__name__}: {str(error).strip().splitlines()[:1]}; give "
                    "inputs that it takes, and keyword arguments that make it give tensors (use_cache=False)"
                ) from error
            if functional or any(_writes_through_views(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, training in modes.items():
            part.training = training
    return program


def _changed(node: Node) -> Node | None:
    """The value that an operation changes in place."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    return node.args[0] if node.args and isinstance(node.args[0], Node) else node


def _writes_through_views(node: Node) -> bool:
    """Whether other values may change along: an elementwise operation on what was just computed changes it alone."""
    changed = _changed(node)
    if changed is None:
        return False
    if torch.Tag.pointwise not in _functional(node.target).tags or not isinstance(  # type: ignore[arg-type]
        changed.target, torch._ops.OpOverload
    ):
        return True
    if _changed(changed) is not None:
        return _writes_through_views(changed)
    return any(returned.alias_info is not None for returned in changed.target._schema.returns)


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """relu for relu_; itself where there is no such thing."""
    name = target.overloadpacket.__name__
    packet = getattr(torch.ops.aten, name.rstrip("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, target)


class InPlaceError(Exception):
    """The graph has to be followed without operations that change values in place."""


@dataclass
class Walk:
    """What is known after each operation.

    Args:
        values: all tensors that were there, stored ones first.
        stored: stored tensors by name.
        used: stored tensors in the order of use -> the axis that made an output's, None if it was none of those.
        uses: how many operations use a stored tensor.
        unknown: (operation, module) where an operation without a rule held axes that could have moved.
    """

    values: list[Value] = field(default_factory=list)
    stored: dict[str, Value] = field(default_factory=dict)
    used: dict[str, int | None] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    unknown: dict[tuple[str, str], None] = field(default_factory=dict)
    scaler: Scaler = field(default_factory=Scaler)

    def run(self, graph: GraphModule, inputs: Sequence[Any]) -> Any:
        """Follow a graph; gives its outputs."""
        env: dict[Node, Any] = {}
        waiting = iter(inputs)
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(waiting)
            elif node.op == "get_attr":
                env[node] = self._attribute(graph, node)
            elif node.op == "output":
                return torch.fx.map_arg(node.args[0], env.__getitem__)
            else:
                args = torch.fx.map_arg(node.args, env.__getitem__)
                kwargs = torch.fx.map_arg(node.kwargs, env.__getitem__)
                env[node] = self._call(node, list(args), dict(kwargs))
        raise AssertionError("a graph has an output")

    def _attribute(self, graph: GraphModule, node: Node) -> Any:
        held = operator.attrgetter(str(node.target))(graph)
        return unknown_value(held.shape) if isinstance(held, torch.Tensor) else held

    def _call(self, node: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        target = node.target
        if target is operator.getitem:
            return args[0][args[1]]
        graphs = [at for at, arg in enumerate(args) if isinstance(arg, GraphModule)]
        if len(graphs) == 1 and str(target) in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            return self.run(args[graphs[0]], args[graphs[0] + 1 :])
        shape = _shape(node.meta.get("val"))
        if not isinstance(target, torch._ops.OpOverload):
            return self._unknown(node, shape, [*args, *kwargs.values()])
        if shape is None:  # a check, or a number
            return node.meta.get("val")
        args = _bind(target, args, kwargs)
        name = _functional(target).overloadpacket.__name__
        self._note(name, args)
        out = self._apply(node, name, shape, args)
        self.scaler.follow(name, args, out)
        self.values += values_in(out)
        return out

    def _apply(self, node: Node, name: str, shape: Any, args: list[Any]) -> Any:
        assert isinstance(node.target, torch._ops.OpOverload)
        rule = RULES.get(f"{name}.{node.target._overloadname}", RULES.get(name))
        if rule is None and torch.Tag.pointwise in _functional(node.target).tags:
            rule = elementwise
        if node.target._schema.is_mutable:
            if _writes_through_views(node):
                rule = None
            if any(leaf.kind == WILD and leaf.size > 1 for axis in args[0].axes for leaf in leaves(axis)):
                raise InPlaceError  # entries that were equal may differ now
        out = None if rule is None else rule(shape, *args)
        return self._unknown(node, shape, args) if out is None else out

    def _unknown(self, node: Node, shape: Any, args: list[Any]) -> Any:
        if any(movable(axis) for value in values_in(args) for axis in value.axes):
            stack = list(node.meta.get("nn_module_stack", {}).values())
            self.unknown[str(node.target), str(stack[-1][0]) if stack else ""] = None
        self.scaler.stop(values_in(args))
        out = unknown(shape, args)
        self.values += values_in(out)
        return out

    def _note(self, name: str, args: list[Any]) -> None:
        for value in values_in(args):
            if value.tensor is not None:
                produces = PRODUCES.get(name)
                self.used.setdefault(value.tensor, None if produces is None else produces % max(value.ndim, 1))
                self.uses[value.tensor] = self.uses.get(value.tensor, 0) + 1


def _shape(made: Any) -> Any:
    """The shape of what an operation made, or the shapes of all; None if it made no tensor."""
    if isinstance(made, torch.Tensor):
        return tuple(int(n) for n in made.shape)
    if isinstance(made, list | tuple) and made and all(isinstance(m, torch.Tensor) for m in made):
        return [_shape(m) for m in made]
    return None


def _bind(target: torch._ops.OpOverload, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    """All arguments in the order of the schema, defaults too."""
    given = target._schema.arguments
    return [
        args[at]
        if at < len(args)
        else kwargs.get(argument.name, argument.default_value if argument.has_default_value() else None)
        for at, argument in enumerate(given)
    ]


def walk(module: nn.Module, layout: Layout, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Walk:
    """Follow the axes of a module from its inputs, which stay, to its outputs, which stay."""
    try:
        return _walk(export(module, args, kwargs), layout)
    except InPlaceError:
        return _walk(export(module, args, kwargs, functional=True), layout)


def _walk(program: ExportedProgram, layout: Layout) -> Walk:
    owners = dict(layout.aliases)
    seen = Walk()
    seen.stored = {name: parameter(shape, name) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    seen.values += seen.stored.values()
    inputs: list[Value | None] = []
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for spec, node in zip(program.graph_signature.input_specs, placeholders, strict=True):
        name = owners.get(str(spec.target), str(spec.target))
        shape = _shape(node.meta.get("val"))
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and name in seen.stored:
            inputs.append(seen.stored[name])
        else:
            inputs.append(None if shape is None else unknown_value(shape))
    outputs = values_in(seen.run(program.graph_module, inputs))
    for value in outputs:
        for axis in value.axes:
            fix(axis)
    seen.scaler.stop(outputs)
    return seen
