"""The codec `weightscape.delta` for zarr, which finds it by the entry point or once this module is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayArrayCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import NDBuffer
from zarr.registry import register_codec

from catalog.errors import FormatError
from catalog.grid import CODEC
from catalog.packed import decode_delta, encode_delta

NAME, VERSION = CODEC["name"], CODEC["version"]


@dataclass(frozen=True)
class DeltaCodec(ArrayArrayCodec):
    """Differences along an axis between floats taken as integers, kept in the bits of the array's own type.

    For data types of 2 or 4 bytes; `catalog/FORMAT.md` says what the bits are.

    Raises:
        FormatError: another version of it, or a configuration or array that it is not for.
    """

    is_fixed_size = True

    axis: int = 1

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The codec in an array's metadata."""
        settings = data.get("configuration")
        if not isinstance(settings, dict) or set(settings) != {"version", "axis"}:
            raise FormatError(f"the configuration of {NAME} is a version and an axis, got {str(settings)[:80]}")
        version, axis = settings["version"], settings["axis"]
        if type(version) is not int or version != VERSION:
            raise FormatError(
                f"the array is coded with {NAME} version {str(version)[:80]}; this weightscape reads version "
                f"{VERSION}: install a newer weightscape"
            )
        if type(axis) is not int or axis < 0:
            raise FormatError(f"the axis of {NAME} is 0 or a positive integer, got {str(axis)[:80]}")
        return cls(axis)

    def to_dict(self) -> dict[str, Any]:
        """What from_dict takes."""
        return {"name": NAME, "configuration": {"version": VERSION, "axis": self.axis}}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Itself, after a look at the array it is for."""
        kind = array_spec.dtype.to_native_dtype()
        if self.axis >= len(array_spec.shape) or kind.itemsize not in (2, 4) or kind.kind not in "fiu":
            raise FormatError(
                f"{NAME} along axis {self.axis} is for numbers of 2 or 4 bytes with that axis, not for {kind} of "
                f"shape {array_spec.shape}"
            )
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """The same size."""
        return input_byte_length

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._changed(encode_delta, chunk_array, chunk_spec)

    def _decode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._changed(decode_delta, chunk_array, chunk_spec)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._encode_sync(chunk_data, chunk_spec)

    async def _decode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._decode_sync(chunk_data, chunk_spec)

    def _changed(self, function: Callable[[np.ndarray, int], np.ndarray], chunk: NDBuffer, spec: ArraySpec) -> NDBuffer:
        values = np.ascontiguousarray(chunk.as_numpy_array())
        if not values.dtype.isnative:
            values = values.byteswap().view(values.dtype.newbyteorder("="))
        bits = function(values.view(f"u{values.itemsize}"), self.axis)
        return spec.prototype.nd_buffer.from_numpy_array(bits.view(values.dtype))


register_codec(NAME, DeltaCodec)
