"""What `Layout` needs to know of numpy arrays and torch tensors alike; imports without torch."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")  # not loaded: then nobody can have made a tensor
    return torch is not None and isinstance(value, torch.Tensor)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype of numpy, of torch, or written out.

    >>> dtype_name(np.dtype("float32")), dtype_name(np.float32), dtype_name("float32")
    ('float32', 'float32', 'float32')
    """
    return str(getattr(dtype, "name", None) or getattr(dtype, "__name__", dtype)).removeprefix("torch.")


def memory(tensor: Any) -> Any:
    """A key that two tensors share if they are one memory; empty tensors and other things share with none."""
    if is_torch(tensor) and tensor.numel():
        # one storage is one Python object, also on the meta device, where every address is 0
        where: tuple[Any, ...] = (id(tensor.untyped_storage()), tensor.storage_offset(), tensor.stride())
    elif isinstance(tensor, np.ndarray) and tensor.size:
        where = (tensor.__array_interface__["data"][0], tensor.strides)
    else:
        return object()
    return (*where, tuple(tensor.shape), tensor.dtype)


def same(a: Any, b: Any) -> bool:
    """Are two tensors equal? NaN equals NaN here: diverged networks are data too."""
    if a is b:  # what `unflatten` gives; under vmap values cannot be asked, so this is more than speed
        return True
    if a.shape != b.shape:
        return False
    if is_torch(a):
        a, b = a.detach(), b.detach().to(a.device)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def float_name(values: Mapping[str, Any], dtype: Any) -> str:
    """The floating dtype in which to store these tensors: the one asked for, or their common one."""
    given = {name: dtype_name(value.dtype) for name, value in values.items()}
    if bad := [name for name, kind in given.items() if kind not in FLOATS + INTEGERS]:
        raise ValueError(f"tensor {bad[0]!r} has dtype {given[bad[0]]}; weights are floats, integers or booleans")
    in_torch = any(is_torch(value) for value in values.values())
    floats = [value.dtype for name, value in values.items() if given[name] in FLOATS]
    if dtype is not None:
        target = dtype_name(dtype)
    elif not floats:
        target = "float32"
    elif in_torch:
        target = dtype_name(functools.reduce(sys.modules["torch"].promote_types, floats))
    else:
        target = np.result_type(*floats).name
    allowed = FLOATS if in_torch else tuple(name for name in FLOATS if name != "bfloat16")
    if target not in allowed:
        raise ValueError(f"dtype must be one of {', '.join(allowed)}; got {target}")
    return target


def integers(values: Any, dtype: str) -> np.ndarray[Any, Any] | None:
    """Numbers of numpy or torch as a numpy array of this integer dtype, or None if one of them is no such integer."""
    if is_torch(values):
        values = values.detach().cpu().double().numpy()
    values = np.asarray(values, np.float64)  # holds every float we store
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    # < high + 1, not <= high: float64 rounds 2**63 - 1 up to 2**63, which is no int64. NaN fails every comparison
    if not np.all((values >= low) & (values < float(high) + 1.0) & (values == np.floor(values))):
        return None
    return values.astype(dtype)


def check_exact(name: str, value: Any, stored: Any) -> None:
    """Raise ValueError if `value` holds integers and `stored`, the same as floats, is not equal to it."""
    kind = dtype_name(value.dtype)
    if kind in INTEGERS:
        back = integers(stored, kind)
        if back is None or not np.array_equal(back, value.detach().cpu().numpy() if is_torch(value) else value):
            raise ValueError(
                f"tensor {name!r} holds integers that {dtype_name(stored.dtype)} cannot hold exactly; "
                "flatten with a wider dtype"
            )


def as_dtype(values: Any, dtype: str, name: str) -> Any:
    """A tensor in its own dtype; ValueError if that is an integer one and the values are not."""
    if dtype in INTEGERS and integers(values, dtype) is None:
        raise ValueError(f"tensor {name!r} should hold {dtype}, but some of its weights are no such integers")
    if is_torch(values):
        return values.to(getattr(sys.modules["torch"], dtype))
    if dtype == "bfloat16":
        raise ValueError(f"tensor {name!r} is bfloat16, which numpy lacks; unflatten a torch tensor, or without cast")
    return values.astype(dtype, copy=False)


def brief(value: Any) -> str:
    """A value for an error message, cut short: it may come from a hostile file.

    >>> brief(10**5000)
    'int'
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists nested thousands deep
        return type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def few(names: Collection[Any]) -> str:
    shown = ", ".join(brief(name) for name in itertools.islice(names, 5))
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
