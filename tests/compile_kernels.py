"""Compile every Triton program that a launcher can choose, for GPUs that are not here.

`python -m tests.compile_kernels`: one JSON line a program on standard output. It needs a process of its own, as nothing
can be compiled where TRITON_INTERPRET is set when triton is first imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.assignment import triton_paths
from kernels.forward import triton_forward
from kernels.overlap import triton_overlap
from kernels.permute import triton_gather
from kernels.similarity import triton_similarity

TARGETS = (80, 90)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def programs() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int]]:
    """Name, kernel, types of arguments, constants and warps."""
    for kind, constants, warps in triton_paths.configurations():
        types = {"costs": f"*{kind}", **dict.fromkeys(("factors", "starts"), "*fp64"), "columns": "*i32"}
        types |= {"prices": "*fp64", "scans": "*i32", "n": "i32"}
        yield f"assign {kind}", triton_paths.assign_kernel, types, constants, warps
    for kind in ("fp32", "fp64"):
        types = {"costs": f"*{kind}", **dict.fromkeys(("factors", "prices", "minima"), "*fp64"), "n": "i32"}
        yield f"bound {kind}", triton_paths.bound_kernel, types, triton_paths.BOUND, 4
    for kind, constants, warps in triton_gather.configurations():
        tables = {"index": "*i32", "segments": "*i64", "tiles": "*i64"}
        counts = dict.fromkeys(("tile_count", "size", "source_stride", "index_width"), "i32")
        types = {"source": f"*{kind}", "target": f"*{kind}", **tables, **counts}
        yield f"gather {kind}", triton_gather.gather_kernel, types, constants, warps
    for kind, constants, warps in triton_similarity.configurations():
        counts = dict.fromkeys(("rows", "columns", "inner", "units", "a_model", "a_unit", "b_model", "b_unit"), "i32")
        types = {"a": f"*{kind}", "b": f"*{kind}", "out": "*fp32", **counts}
        yield f"similarity {kind}", triton_similarity.similarity_kernel, types, constants, warps
    for kind, constants, warps in triton_forward.configurations():
        read = {"weights": f"*{kind}", "table": "*i64", "alphas": "*fp32", "counted": "*i64", "squared": "*i32"}
        written = {"loss": "*fp64", "correct": "*i32", "bits": "*u8", "logits": "*fp32", "first": "i64"}
        names = ("samples", "inputs", "layers", "activation", "points", "tiles", "each", "wanted", "x_row")
        types = {"x": "*fp32", "y": "*i64", **read, **written, **dict.fromkeys(names, "i32")}
        yield f"forward {kind}", triton_forward.forward_kernel, types, constants, warps
    for kind, constants, warps in triton_overlap.configurations():
        made = {"groups_a": "*i64", "groups_b": "*i64", "best": "*fp32", "index": "*i32"}
        types = {"a": "*i32", "b": "*i32", **({"out": "*fp32"} if kind == "overlap" else made)}
        types |= dict.fromkeys(("rows", "columns", "words"), "i32")
        yield kind, getattr(triton_overlap, f"{kind}_kernel"), types, constants, warps


def resources(binary: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack: where registers go for which there is no room."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return {"registers": int(found[1]), "stack": int(found[2])}


def main() -> None:
    assert os.environ.get("TRITON_INTERPRET") != "1"
    for name, kernel, types, constants, warps in programs():
        signature = {**types, **dict.fromkeys(constants, "constexpr")}
        for target in TARGETS:
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            made = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps})
            row = {"name": name, "constants": constants, "warps": warps, "target": target}
            print(json.dumps({**row, "shared": made.metadata.shared, **resources(made.asm["cubin"])}), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
