"""What can be said about Triton programs without a GPU: that they compile for two kinds, and fit there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels.assignment import triton_paths
from kernels.forward import triton_forward
from kernels.overlap import triton_overlap
from kernels.permute import triton_gather
from kernels.similarity import triton_similarity

ROOT = Path(__file__).parent.parent
SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes a program can have (CUDA programming guide, compute capabilities)
REGISTERS, LARGEST = 65536, 255  # of a multiprocessor, of a thread
FEW = 16  # bytes of a thread that the compiler may lay aside so that one more program fits
OUTSIDE = 8192  # columns of an assignment from which a part of its state cannot be in registers


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """A row a program and kind of GPU."""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compile_kernels"]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_program_compiles_for_both(compiled: list[dict[str, Any]]) -> None:
    parts = (triton_paths, triton_gather, triton_similarity, triton_forward, triton_overlap)
    expected = sum(len(part.configurations()) for part in parts) + 2  # and the bound of assignments, of two types
    for target in SHARED:
        seen = {json.dumps([row["name"], row["constants"]]) for row in compiled if row["target"] == target}
        assert len(seen) == expected


def test_every_program_fits(compiled: list[dict[str, Any]]) -> None:
    for row in compiled:
        assert row["shared"] <= SHARED[row["target"]], row
        assert row["registers"] <= LARGEST, row
        assert row["registers"] * 32 * row["warps"] <= REGISTERS, row


def test_state_stays_in_registers(compiled: list[dict[str, Any]]) -> None:
    outside = {(row["name"], str(row["constants"])) for row in compiled if row["stack"] > FEW}
    packed = [{"N": size, "PACKED": True} for size in (OUTSIDE, 2 * OUTSIDE)]
    assert outside <= {("assign fp32", str(constants)) for constants in packed}


def test_launchers_choose_only_what_is_compiled() -> None:
    known = {(*constants.values(), warps) for _, constants, warps in triton_paths.configurations()}
    for packed, most in ((True, triton_paths.PACKED_UP_TO), (False, triton_paths.EXACT_UP_TO)):
        for n in range(1, most + 1):
            size = triton_paths.lanes(n)
            assert size >= n
            assert (size, packed, triton_paths.warps(size, packed)) in known
    tiles = [(constants, warps) for _, constants, warps in triton_similarity.configurations()]
    assert all(triton_similarity.tile(rows, columns) in tiles for rows in range(1, 99) for columns in range(1, 99))
    assert {kind for kind, _, _ in triton_gather.configurations()} == {"i8", "i16", "i32", "i64"}
    forwards = [(constants, warps) for _, constants, warps in triton_forward.configurations()]
    for mixed, most in ((False, max(triton_forward.SHAPES)), (True, triton_forward.MIXED_UP_TO)):
        for hidden in range(1, most + 1):
            constants, warps = triton_forward.tile(hidden)
            assert constants["UNITS"] >= hidden
            assert ({**constants, "MIXED": mixed}, warps) in forwards
