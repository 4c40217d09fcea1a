"""Layout: what goes into the flat vector comes out, as views, and nothing hostile gets in."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import batches, layouts, population, seeds
from weightspace.layout import MAX_SIZE, Layout

SMALL = Layout(
    ("a.weight", "a.bias", "steps", "none"),
    ((3, 2), (3,), (), (0, 5)),
    ("float32", "float32", "int64", "float32"),
    ("parameter", "parameter", "buffer", "parameter"),
    (("tied", "a.weight"),),
)


def as_numpy(weights: np.ndarray[Any, Any]) -> Any:
    return weights


def as_torch(weights: np.ndarray[Any, Any]) -> Any:
    torch = pytest.importorskip("torch")
    return torch.from_numpy(weights.copy())


libraries = pytest.mark.parametrize("library", [as_numpy, as_torch])
Library = Callable[[np.ndarray[Any, Any]], Any]


def start(array: Any) -> int:
    """Address of the first element."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr())


# --- round trips


@libraries
@given(layout=layouts(), batch=batches, seed=seeds)
def test_unflatten_then_flatten_gives_the_same_weights(
    library: Library, layout: Layout, batch: tuple[int, ...], seed: int
) -> None:
    truth = population(layout, batch, seed)
    tensors = layout.unflatten(library(truth))
    assert list(tensors) == [*layout.names, *(alias for alias, _ in layout.aliases)]
    for name, shape, offset in zip(layout.names, layout.shapes, layout.offsets, strict=True):
        assert tuple(tensors[name].shape) == (*batch, *shape)
        expected = truth[..., offset : offset + math.prod(shape)].reshape((*batch, *shape))
        np.testing.assert_array_equal(np.asarray(tensors[name]), expected)
    if len(layout):  # without tensors nobody knows the batch
        flat = layout.flatten(tensors)
        assert type(flat) is type(library(truth))
        assert flat.dtype == library(truth).dtype
        np.testing.assert_array_equal(np.asarray(flat), truth)


@libraries
@given(layout=layouts(), batch=batches, seed=seeds)
def test_every_tensor_is_a_view(library: Library, layout: Layout, batch: tuple[int, ...], seed: int) -> None:
    weights = library(population(layout, batch, seed))
    tensors = layout.unflatten(weights)
    for name in tensors:
        i = layout.slice(name).start
        for view in (tensors[name], layout.tensor(weights, name)):
            if math.prod(view.shape):
                assert start(view) == start(weights[..., i:])
                view[...] = -1  # and what is written arrives
        assert (np.asarray(weights[..., layout.slice(name)]) == -1).all()


@libraries
@pytest.mark.parametrize("stride", [1, 3])
def test_views_of_weights_that_are_not_contiguous(library: Library, stride: int) -> None:
    whole = library(population(Layout(("x",), ((12 * stride,),)), (10,)))
    layout = Layout(("w", "s", "b"), ((2, 2, 2), (), (1, 1)))
    by_column = whole[:, : 10 * stride : stride] if stride > 1 else whole[:, :10].T  # the flat axis has a stride
    for name in layout.names:
        view = layout.tensor(by_column, name)
        assert start(view) == start(by_column[:, layout.slice(name)])
        np.testing.assert_array_equal(np.asarray(view).reshape(10, -1), np.asarray(by_column[:, layout.slice(name)]))


def test_flatten_copies_once_and_keeps_its_input() -> None:
    tensors = SMALL.unflatten(population(SMALL, (4,)))
    flat = SMALL.flatten(tensors)
    before = {name: value.copy() for name, value in tensors.items()}
    flat[...] = -1
    for name, value in before.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_offsets_sizes_and_names() -> None:
    assert SMALL.offsets == (0, 6, 9, 10)
    assert (SMALL.size, SMALL.num_parameters, len(SMALL)) == (10, 9, 4)
    assert SMALL.slice("tied") == SMALL.slice("a.weight") == slice(0, 6)
    assert SMALL.slice("steps") == slice(9, 10)
    assert "tied" in SMALL
    assert "steps" in SMALL
    assert "b.bias" not in SMALL
    assert Layout(("x",), ((2,),)) == Layout(("x",), ((2,),), ("float32",), ("parameter",))
    assert hash(copy.deepcopy(SMALL)) == hash(SMALL)
    assert pickle.loads(pickle.dumps(SMALL)) == SMALL


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_a_layout_without_tensors(batch: tuple[int, ...]) -> None:
    layout = Layout((), ())
    assert (layout.size, layout.offsets, len(layout)) == (0, (), 0)
    assert layout.unflatten(np.zeros((*batch, 0))) == {}
    with pytest.raises(ValueError, match="last axis must hold 0 weights, got 1"):
        layout.unflatten(np.zeros((*batch, 1)))
    assert layout.flatten({}).shape == (0,)
    assert Layout.from_json(layout.to_json()) == layout


# --- dtypes


@pytest.mark.parametrize(
    ("given_", "asked", "result"),
    [
        (("float32", "float64"), None, "float64"),
        (("float64", "float16"), None, "float64"),
        (("float16", "int64"), None, "float16"),
        (("int64", "bool"), None, "float32"),
        (("float64", "int8"), "float32", "float32"),
    ],
)
@libraries
def test_dtype_of_flatten(library: Library, given_: tuple[str, str], asked: str | None, result: str) -> None:
    layout = Layout(("a", "b"), ((2,), ()))
    tensors = {"a": library(np.array([0, 1], given_[0])), "b": library(np.array(1, given_[1]))}
    flat = layout.flatten(tensors, asked)
    assert str(flat.dtype).removeprefix("torch.") == result
    assert np.asarray(flat).tolist() == [0, 1, 1]
    if asked:
        assert layout.flatten(tensors, flat.dtype).dtype == flat.dtype


@pytest.mark.parametrize("dtype", ["int64", "complex64", "longdouble", "bfloat16", "nonsense"])
def test_numpy_flattens_to_floats_only(dtype: str) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float16, float32, float64; got"):
        SMALL.flatten(SMALL.unflatten(population(SMALL)), dtype)


@libraries
def test_tensors_that_are_no_numbers_we_store(library: Library) -> None:
    with pytest.raises(ValueError, match="tensor 'z' has dtype complex64"):
        Layout(("z",), ((2,),)).flatten({"z": library(np.zeros(2, np.complex64))})
    with pytest.raises(ValueError, match=r"tensor 'z': dtype must be one of .*; got 'complex64'"):
        Layout.of({"z": library(np.zeros(2, np.complex64))})


def fits(value: int, dtype: str) -> bool:
    """Is there a float of this dtype equal to the integer? In Python's own exact numbers."""
    bits, top = {"float16": (11, 65504), "float32": (24, 2**128), "float64": (53, 2**1024)}[dtype]
    odd = abs(value)
    while odd and odd % 2 == 0:
        odd //= 2
    return odd < 2**bits and abs(value) <= top


@libraries
@given(
    value=st.one_of(
        st.integers(-(2**63), 2**63 - 1),
        st.sampled_from([2**24, 2**24 + 1, 2**24 + 2, 2**53 + 1, 2**63 - 1, -(2**63), 65504, 65505, 65520, 70000]),
    ),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_integers_are_stored_exactly_or_refused(library: Library, value: int, dtype: str) -> None:
    layout = Layout(("steps",), ((),), ("int64",))
    tensors = {"steps": library(np.array(value, np.int64))}
    if fits(value, dtype):
        back = layout.unflatten(layout.flatten(tensors, dtype), cast=True)["steps"]
        assert str(back.dtype).removeprefix("torch.") == "int64"
        assert int(back) == value
    else:
        with pytest.raises(ValueError, match=f"tensor 'steps' holds integers that {dtype} cannot hold exactly"):
            layout.flatten(tensors, dtype)


@libraries
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *[("int64", 0.5), ("int64", math.nan), ("int64", math.inf), ("int64", 2.0**63), ("int64", -(2.0**64))],
        *[("bool", 2), ("bool", -1), ("int8", 128), ("int8", -129), ("uint8", 256), ("uint8", -1), ("uint64", 2.0**64)],
    ],
)
def test_cast_refuses_what_is_no_such_integer(library: Library, dtype: str, value: float) -> None:
    layout = Layout(("x", "steps"), ((), ()), ("float32", dtype))
    weights = library(np.array([value, value], np.float32))
    assert set(layout.unflatten(weights)) == {"x", "steps"}  # as views they may be anything
    with pytest.raises(ValueError, match=f"tensor 'steps' should hold {dtype}"):
        layout.unflatten(weights, cast=True)


@libraries
def test_cast_gives_each_tensor_its_dtype_and_aliases_too(library: Library) -> None:
    dtypes = ("float16", "float32", "int8", "bool", "uint64")
    layout = Layout(tuple("abcde"), ((2,), (), (), (2,), ()), dtypes, (), (("tied", "a"), ("again", "c")))
    weights = library(np.array([[0.5, 1, 2, -128, 0, 1, 2**63]], np.float32))
    tensors = layout.unflatten(weights, cast=True)
    assert [str(t.dtype).removeprefix("torch.") for t in tensors.values()] == [*dtypes, "float16", "int8"]
    assert tensors["tied"] is tensors["a"]
    assert start(tensors["b"]) == start(weights[:, 2:])  # its dtype already: no copy
    np.testing.assert_array_equal(np.asarray(layout.flatten(tensors)), np.asarray(weights))


def test_bfloat16_is_for_torch() -> None:
    layout = Layout(("x",), ((2,),), ("bfloat16",))
    weights = np.ones(2, np.float32)
    assert layout.unflatten(weights)["x"].dtype == np.float32
    with pytest.raises(ValueError, match="tensor 'x' is bfloat16, which numpy lacks"):
        layout.unflatten(weights, cast=True)
    torch = pytest.importorskip("torch")
    cast = layout.unflatten(torch.ones(2), cast=True)
    assert cast["x"].dtype == torch.bfloat16
    assert layout.flatten(cast).dtype == torch.bfloat16
    assert layout.flatten(cast, torch.float64).dtype == torch.float64
    with pytest.raises(ValueError, match="cannot hold exactly"):  # 8 bits of significand
        layout.flatten({"x": torch.tensor([256, 257])}, "bfloat16")


# --- tensors and weights that do not fit


@libraries
def test_wrong_weights(library: Library) -> None:
    calls: list[Callable[[Any], Any]] = [SMALL.unflatten, lambda weights: SMALL.tensor(weights, "steps")]
    for call in calls:
        with pytest.raises(ValueError, match="last axis must hold 10 weights, got 12"):
            call(library(np.zeros((10, 12))))
        with pytest.raises(ValueError, match="last axis must hold 10 weights, got a scalar"):
            call(library(np.array(1.0)))
        with pytest.raises(ValueError, match="weights must be a numpy array or a torch tensor, got list"):
            call([0.0] * 10)


@libraries
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "missing 'steps'"),
        ({"b.bias": (3,)}, "unknown 'b.bias'"),
        ({"steps": None, "b.bias": (3,)}, "missing 'steps'; unknown 'b.bias'"),
        ({"a.bias": (2, 4)}, r"tensor 'a.bias' must have shape \(3,\) behind the leading axes, got \(2, 4\)"),
        ({"a.weight": (2,)}, r"tensor 'a.weight' must have shape \(3, 2\) behind the leading axes, got \(2,\)"),
        ({"a.weight": (2, 2, 3)}, r"tensor 'a.weight' must have shape \(3, 2\)"),
        ({"steps": ()}, r"tensor 'steps' must have the leading axes \(2,\) of 'a.weight', got \(\)"),
        ({"none": (1, 0, 5)}, r"tensor 'none' must have the leading axes \(2,\) of 'a.weight', got \(1,\)"),
        ({"tied": (2, 3, 2)}, "tensor 'tied' is tied to 'a.weight' but differs from it"),
        ({"tied": (3, 2)}, "tensor 'tied' is tied to 'a.weight' but differs from it"),
    ],
)
def test_wrong_tensors(library: Library, change: dict[str, tuple[int, ...] | None], message: str) -> None:
    tensors = SMALL.unflatten(library(population(SMALL, (2,))))
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = library(np.ones(shape, np.float32))
    with pytest.raises(ValueError, match=message):
        SMALL.flatten(tensors)


@libraries
def test_an_alias_may_be_left_out_or_equal_even_when_nan(library: Library) -> None:
    weights = library(population(SMALL, (2,)))
    weights[0] = math.nan  # a diverged network
    weights[:, SMALL.slice("steps")] = 1
    tensors = SMALL.unflatten(weights)
    tensors["tied"] = copy.deepcopy(tensors["tied"])
    np.testing.assert_array_equal(np.asarray(SMALL.flatten(tensors)), np.asarray(weights))
    del tensors["tied"]
    np.testing.assert_array_equal(np.asarray(SMALL.flatten(tensors)), np.asarray(weights))


@libraries
def test_an_alias_of_another_shape_differs_even_where_it_would_broadcast(library: Library) -> None:
    tensors = SMALL.unflatten(library(np.zeros((2, 10), np.float32)))
    tensors["tied"] = library(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"tensor 'tied' is tied to 'a.weight' but differs from it"):
        SMALL.flatten(tensors)


def test_numpy_and_torch_do_not_mix() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="all numpy or all torch"):
        Layout(("a", "b"), ((), ())).flatten({"a": np.zeros(()), "b": torch.zeros(())})
    with pytest.raises(ValueError, match="on one device, got 'cpu', 'meta'"):
        Layout(("a", "b"), ((), ())).flatten({"a": torch.zeros(()), "b": torch.zeros((), device="meta")})


def test_an_unknown_name_lists_near_ones() -> None:
    for call in (SMALL.slice, lambda name: SMALL.select([name]), lambda name: SMALL.indices(["steps", name])):
        with pytest.raises(KeyError, match=r"no tensor 'a\.wieght' among the 4 .* it has 'a\.weight'"):
            call("a.wieght")
    with pytest.raises(KeyError, match="it has none"):
        Layout((), ()).slice("x")
    with pytest.raises(ValueError, match=r"got the string 'steps'; write \['steps'\]"):
        SMALL.select("steps")


# --- parts


@given(layout=layouts(), data=st.data(), seed=seeds)
def test_select_fits_indices(layout: Layout, data: st.DataObject, seed: int) -> None:
    weights = population(layout, (2,), seed)
    tensors = layout.unflatten(weights)
    names = data.draw(st.lists(st.sampled_from(sorted(tensors)))) if tensors else []
    part, indices = layout.select(iter(names)), layout.indices(iter(names))
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()  # layout order, nothing twice
    assert indices.size == part.size
    chosen = part.unflatten(weights[:, indices])
    assert set(chosen) == set(names)
    for name, value in chosen.items():
        np.testing.assert_array_equal(value, tensors[name])
        i, j = part._position[name], layout._position[name]
        assert (part.dtypes[i], part.roles[i]) == (layout.dtypes[j], layout.roles[j])
    assert layout.select(tensors) == layout


def test_an_alias_selected_alone_stands_for_the_tensor_it_shares() -> None:
    part = SMALL.select(["steps", "tied"])
    assert part.names == ("tied", "steps")  # where the shared tensor lies, not where aliases are listed
    assert part.shapes == ((3, 2), ())
    assert part.aliases == ()
    assert SMALL.indices(["steps", "tied"]).tolist() == [0, 1, 2, 3, 4, 5, 9]


# --- JSON


@given(layout=layouts())
def test_json_round_trip(layout: Layout) -> None:
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout
    assert again.fingerprint == layout.fingerprint
    assert set(layout.fingerprint) <= set("0123456789abcdef")
    assert len(layout.fingerprint) == 16


def test_fingerprint_tells_layouts_apart_and_processes_agree() -> None:
    other = [
        Layout(("a", "b"), ((2,), (3,))),
        Layout(("b", "a"), ((2,), (3,))),
        Layout(("a", "b"), ((3,), (2,))),
        Layout(("a", "b"), ((2,), (3,)), ("float16", "float32")),
        Layout(("a", "b"), ((2,), (3,)), (), ("buffer", "parameter")),
        Layout(("a", "b"), ((2,), (3,)), (), (), (("c", "a"),)),
        Layout(("a", "b"), ((2,), (3,)), (), (), (("c", "b"),)),
    ]
    assert len({layout.fingerprint for layout in other}) == len(other)
    code = "from weightspace.layout import Layout; print(Layout(('a', 'b'), ((2,), (3,))).fingerprint)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == other[0].fingerprint


def broken(path: tuple[Any, ...], value: Any) -> Any:
    """The JSON of SMALL with one place changed; a value of `...` deletes it."""
    obj: Any = json.loads(json.dumps(SMALL.to_json()))
    place = obj
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return obj


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("size",), ..., "must have exactly the keys tensors, aliases, size; got 'tensors', 'aliases'"),
        (("code",), "rm", "must have exactly the keys"),
        (("size",), 9, "size must be 10, the sum of the tensors, got 9"),
        (("size",), 10.0, "size must be 10"),
        (("size",), "10", "size must be 10"),
        (("tensors",), {}, "must be lists"),
        (("tensors",), None, "must be lists"),
        (("aliases",), {"tied": "a.weight"}, "must be lists"),
        (("tensors", 1), 5, "tensor 1 of a layout must be an object"),
        (("tensors", 1, "stride"), 1, "tensor 1 of a layout must have exactly the keys"),
        (("tensors", 1, "role"), ..., "tensor 1 of a layout must have exactly the keys"),
        (("tensors", 1, "offset"), 7, r"'a.bias': offset must be 6, .* got 7 \(overlap or gap\)"),
        (("tensors", 1, "offset"), 5, r"'a.bias': offset must be 6, .* got 5 \(overlap or gap\)"),
        (("tensors", 1, "offset"), 6.0, "offset must be 6"),
        (("tensors", 0, "offset"), False, "offset must be 0"),
        (("tensors", 0, "offset"), None, "offset must be 0"),
        (("tensors", 1, "shape"), [-3], r"'a.bias': shape must be .* got \(-3,\)"),
        (("tensors", 1, "shape"), [3.0], "'a.bias': shape must be"),
        (("tensors", 1, "shape"), [True], "'a.bias': shape must be"),
        (("tensors", 1, "shape"), [None], "'a.bias': shape must be"),
        (("tensors", 1, "shape"), [[3]], "'a.bias': shape must be"),
        (("tensors", 1, "shape"), 3, "'a.bias': shape must be a list"),
        (("tensors", 1, "shape"), "3", "'a.bias': shape must be a list"),
        (("tensors", 1, "shape"), [1] * 33, "'a.bias': shape must be at most 32"),
        (("tensors", 1, "shape"), [10**4400], "'a.bias': shape must be"),
        (("tensors", 1, "shape"), [2**25, 2**25], r"'a.bias': more than 2\*\*48 weights"),
        (("tensors", 1, "shape"), [MAX_SIZE], r"'a.bias': more than 2\*\*48 weights"),  # with the six before it
        (("tensors", 1, "shape"), [0, 2**47, 2**47], r"'a.bias': more than 2\*\*48 weights"),
        (("tensors", 1, "name"), "a.weight", "two tensors are called 'a.weight'"),
        (("tensors", 1, "name"), "tied", "two tensors are called 'tied'"),
        (("tensors", 1, "name"), "", "name must be 1 to 512 characters"),
        (("tensors", 1, "name"), "x" * 513, "name must be 1 to 512 characters"),
        (("tensors", 1, "name"), "a\0b", "without control characters"),
        (("tensors", 1, "name"), "a\nb", "without control characters"),
        (("tensors", 1, "name"), "a\x9bb", "without control characters"),
        (("tensors", 1, "name"), "\ud800", "without control characters"),
        (("tensors", 1, "name"), 5, "name must be 1 to 512 characters"),
        (("tensors", 1, "name"), [], "name must be 1 to 512 characters"),
        (("tensors", 1, "role"), "gradient", "'a.bias': role must be one of parameter, buffer; got 'gradient'"),
        (("tensors", 1, "role"), ["buffer"], "role must be one of"),
        (("tensors", 1, "dtype"), "object", "'a.bias': dtype must be one of .*; got 'object'"),
        (("tensors", 1, "dtype"), None, "dtype must be one of"),
        (("aliases", 0), ["tied", "b.weight"], "alias 'tied' must point to a stored tensor, got 'b.weight'"),
        (("aliases", 0), ["tied", "tied"], "alias 'tied' must point to a stored tensor, got 'tied'"),
        (("aliases", 0), ["tied", []], "alias 'tied' must point to a stored tensor"),
        (("aliases", 0), ["tied"], "an alias is"),
        (("aliases", 0), "ab", "an alias must be a list"),
        (("aliases", 0), [5, "a.weight"], "name must be 1 to 512 characters"),
        (("aliases",), [["x", "steps"], ["y", "x"]], "alias 'y' must point to a stored tensor, got 'x'"),
        (("aliases",), [["x", "steps"], ["x", "steps"]], "two tensors are called 'x'"),
        (("aliases",), [["steps", "none"]], "two tensors are called 'steps'"),
    ],
)
def test_hostile_json(path: tuple[Any, ...], value: Any, message: str) -> None:
    assert Layout.from_json(SMALL.to_json()) == SMALL
    with pytest.raises(ValueError, match=message) as caught:
        Layout.from_json(broken(path, value))
    assert len(str(caught.value)) < 400  # whatever came, the message stays readable


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
places = [(), *((key,) for key in SMALL.to_json()), ("tensors", 0), ("aliases", 0), ("aliases", 0, 1)]
places += [("tensors", 0, key) for key in SMALL.to_json()["tensors"][0]] + [("tensors", 0, "shape", 0)]


@given(path=st.sampled_from(places), value=anything)
def test_any_json_is_a_layout_or_a_value_error(path: tuple[Any, ...], value: Any) -> None:
    try:
        layout = Layout.from_json(broken(path, value) if path else value)
    except ValueError:
        return
    assert Layout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize(
    "fields",
    [
        (("a",), ()),
        (("a",), ((1,),), ("float32", "float32")),
        (("a",), ((1,),), (), ("buffer", "buffer")),
        (("a",), (3,)),
        (None, ()),
        (("a",), ((1,),), (), (), (("b",),)),
        (("a",), ((np.bool_(True),),)),
    ],
)
def test_fields_that_do_not_fit(fields: Any) -> None:
    with pytest.raises(ValueError, match=r"layout|shape|alias"):
        Layout(*fields)


def test_lists_become_tuples_and_numpy_integers_plain_ones() -> None:
    loose: Any = (["a"], [[np.int64(2), 1]], ["int8"], ["buffer"], [["b", "a"]])
    assert Layout(*loose) == Layout(("a",), ((2, 1),), ("int8",), ("buffer",), (("b", "a"),))
    assert Layout(*loose).fingerprint  # all of it goes into JSON


# --- from tensors


def test_of_numpy() -> None:
    x = np.arange(9, dtype=np.float64).reshape(3, 3)
    tensors: dict[str, Any] = {
        "x": x,
        "same": x,
        "view": x[:],
        "turned": x.T,
        "copy": x.copy(),
        "steps": np.array(3),
        "part": x[1:],
    }
    tensors |= {"void": x[:0], "void again": x[:0], "scalar": np.float16(1), "swapped": x.astype(">f4")}
    layout = Layout.of(tensors, {"steps": "buffer"})
    assert layout.aliases == (("same", "x"), ("view", "x"))
    assert layout.names == ("x", "turned", "copy", "steps", "part", "void", "void again", "scalar", "swapped")
    assert layout.dtypes == ("float64",) * 3 + ("int64",) + ("float64",) * 3 + ("float16", "float32")
    assert [name for name in layout.names if layout.roles[layout._position[name]] == "buffer"] == ["steps"]
    flat = layout.flatten(tensors)
    for name, value in layout.unflatten(flat).items():
        np.testing.assert_array_equal(value, tensors[name])


def test_of_things_that_are_no_tensors() -> None:
    with pytest.raises(ValueError, match="tensor 'x' must have a shape and a dtype, got list"):
        Layout.of({"x": [1, 2]})
    with pytest.raises(ValueError, match="roles given for tensors that are not there: 'y'"):
        Layout.of({"x": np.zeros(2)}, {"y": "buffer"})


def test_of_arrays_made_on_the_way_are_not_tied() -> None:
    class Lazy(Mapping[str, Any]):
        """Makes its arrays when asked, as readers of files do: freed ones leave their address to the next."""

        def __getitem__(self, name: str) -> Any:
            return np.full(1000, ord(name))

        def __iter__(self) -> Iterator[str]:
            return iter("abcdef")

        def __len__(self) -> int:
            return 6

    assert Layout.of(Lazy()).names == tuple("abcdef")


def batch_norm_net() -> Any:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
        net.register_buffer("scratch", torch.zeros(7), persistent=False)
        for _ in range(3):
            net(torch.randn(5, 1, 4, 4))
    return net


def tied_net() -> Any:
    """An encoder and a decoder that share one matrix, as in language models."""
    torch = pytest.importorskip("torch")
    net = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5)})
    net["head"].weight = net["embed"].weight
    return net


def test_module_with_batch_norm_round_trips() -> None:
    torch = pytest.importorskip("torch")
    net = batch_norm_net()
    layout = Layout.from_module(net)
    parameters = [name for name, _ in net.named_parameters()]
    assert layout.names[: len(parameters)] == tuple(parameters)
    assert layout.roles == ("parameter",) * len(parameters) + ("buffer",) * 3
    assert set(layout.names) == set(net.state_dict())  # persistent buffers only
    assert layout.num_parameters == sum(p.numel() for p in net.parameters())
    weights = layout.flatten(net.state_dict())
    assert weights.dtype == torch.float32
    tensors = layout.unflatten(weights, cast=True)
    assert tensors["1.num_batches_tracked"].dtype == torch.int64
    fresh = copy.deepcopy(net)
    for value in fresh.state_dict().values():
        value.zero_()
    fresh.load_state_dict(tensors, strict=True)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, rtol=0, atol=0)
    x = torch.ones(2, 1, 4, 4)
    torch.testing.assert_close(fresh.eval()(x), net.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_tensors_are_stored_once(device: str) -> None:
    torch = pytest.importorskip("torch")
    with torch.device(device):  # on meta every address is 0
        net = tied_net()
        other = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5)})
    layout = Layout.from_module(net)
    assert layout.names == ("embed.weight", "head.bias")
    assert layout.aliases == (("head.weight", "embed.weight"),)
    assert layout.size == layout.num_parameters == 25
    assert Layout.of(net.state_dict()) == layout
    assert Layout.from_module(other).aliases == ()


def test_a_tied_module_loads_from_unflatten() -> None:
    torch = pytest.importorskip("torch")
    net = tied_net()
    layout = Layout.from_module(net)
    fresh = tied_net()
    fresh.load_state_dict(layout.unflatten(layout.flatten(net.state_dict()), cast=True), strict=True)
    assert fresh["head"].weight is fresh["embed"].weight
    torch.testing.assert_close(fresh["embed"].weight, net["embed"].weight, rtol=0, atol=0)
    torch.testing.assert_close(fresh["head"].bias, net["head"].bias, rtol=0, atol=0)


def test_of_torch_ties_the_same_memory_only() -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(4, 4)
    tensors = {"x": x, "detached": x.detach(), "turned": x.T, "part": x[:2], "rest": x[2:], "copy": x.clone()}
    tensors |= {"void": x[:0], "void again": x[:0], "bits": x.view(torch.int32)}
    assert Layout.of(tensors).aliases == (("detached", "x"),)


def test_a_state_dict_with_other_things() -> None:
    torch = pytest.importorskip("torch")

    class Extra(torch.nn.Linear):  # type: ignore[name-defined]  # importorskip gives an untyped torch
        def get_extra_state(self) -> Any:
            return {"version": 1}

        def set_extra_state(self, state: Any) -> None: ...

    with pytest.raises(ValueError, match="things that are no tensors: '_extra_state'"):
        Layout.from_module(Extra(2, 2))


# --- gradients


def test_gradients_through_flatten_and_unflatten() -> None:
    torch = pytest.importorskip("torch")
    layout = Layout(("w", "s", "e", "b"), ((2, 3), (), (0,), (3,)), aliases=(("tied", "w"),))
    weights = torch.arange(20.0, dtype=torch.float64).reshape(2, 10).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: layout.flatten({n: t**2 for n, t in layout.unflatten(w).items()}), weights
    )
    tensors = layout.unflatten(weights)
    (tensors["w"].sum() + 2 * tensors["tied"].sum() + 5 * tensors["s"].sum()).backward()
    assert weights.grad[0].tolist() == [3.0] * 6 + [5.0] + [0.0] * 3  # the tied tensor collects both


def test_a_population_under_vmap_equals_one_by_one() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    layout = Layout.from_module(net)
    weights = torch.linspace(-1, 1, 5 * layout.size, dtype=torch.float64).reshape(5, layout.size)
    x = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3)

    def loss(flat: Any) -> Any:
        return torch.func.functional_call(net, layout.unflatten(flat), (x,)).square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss))(weights)
    for i in range(5):
        net.load_state_dict(layout.unflatten(weights[i]))
        net.zero_grad()
        net(x).square().mean().backward()
        alone = layout.flatten({name: p.grad for name, p in net.named_parameters()})
        torch.testing.assert_close(gradients[i], alone)
    tied = Layout(layout.names, layout.shapes, aliases=(("tied", layout.names[0]),))
    again = torch.func.vmap(lambda flat: tied.flatten(tied.unflatten(flat)))(weights)
    assert torch.equal(again, weights)


# --- without torch


def test_works_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"  # importing it now fails
        "import numpy as np; from weightspace.layout import Layout\n"
        "x = {'a': np.ones((2, 3)), 'b': np.array(7)}; layout = Layout.of(x)\n"
        "assert (layout.flatten(layout.unflatten(layout.flatten(x), cast=True)) == [1] * 6 + [7]).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, weightspace.layout; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
