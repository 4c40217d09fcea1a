"""Frozen records as JSON and back, strictly: every member there, none unknown, each of its type."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from catalog.errors import FormatError

Record = TypeVar("Record")


def to_json(record: Any) -> Any:
    """A record as objects, lists, numbers and text. Numbers that are not finite are null: JSON has no name for them."""
    if dataclasses.is_dataclass(record):
        return {field.name: to_json(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(name): to_json(value) for name, value in record.items()}
    if isinstance(record, tuple | list):
        return [to_json(value) for value in record]
    if isinstance(record, float) and not math.isfinite(record):
        return None
    return record


def from_json(cls: type[Record], content: Any, where: str) -> Record:
    """The record that `to_json` made this of.

    Args:
        where: what is read, for errors, such as "card".

    Raises:
        FormatError: a member that lacks, that there is not, or of another type.
    """
    if not isinstance(content, Mapping):
        raise FormatError(f"{where} must be an object, got {type(content).__name__}")
    names = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
    for name in names:
        if name not in content:
            raise FormatError(f"{where} lacks {name!r}: it is no card, or one that another version wrote")
    for name in content:
        if name not in names:
            raise FormatError(f"{where} has {name!r}, which this version does not know; known: {', '.join(names)}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], content[name], f"{where}.{name}") for name in names})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (one for one in inside if one is not type(None))
        return None if value is None else _value(kind, value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise FormatError(f"{where} must be a list, got {type(value).__name__}")
        return tuple(_value(inside[0], one, f"{where}[{place}]") for place, one in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise FormatError(f"{where} must be an object, got {type(value).__name__}")
        return {name: _value(inside[1], one, f"{where}.{name}") for name, one in value.items()}
    if hint is Any:
        return value
    if hint is float:
        if value is None:
            return math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is hint:
        return value
    raise FormatError(f"{where} must be {'a number' if hint is float else hint.__name__}, got {value!r:.40}")
