"""Compiled code for processors with narrower vector registers than this one."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import sys
import llvmlite.binding as binding
host, missing = binding.get_host_cpu_features(), sys.argv[2].split(",")
features = {name: have and not name.startswith(tuple(missing)) for name, have in host.items()}
binding.get_host_cpu_features = lambda: features  # what `kernels.mlp.tiles` asks

import dataclasses
import torch
from kernels.curvature.surface import surface
from kernels.curvature.trace import exact_trace
from kernels.mlp.tiles import REGISTER
from zoo.datasets import load_dataset
from zoo.evaluate import evaluate
from zoo.plan import make_plan
from zoo.spec import ZooSpec
from zoo.train import train

assert REGISTER == int(sys.argv[1])
data = load_dataset("digits")
x, y = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
for family, number in (("mlp", {"width": 33}), ("cnn", {"channels": 5})):
    hyper = {"batch_size": 21, "dropout": 0.2, "weight_decay": 0.01}
    (runs,) = make_plan(ZooSpec("x", family, number, hyperparameters=hyper)).runs.values()
    runs = [dataclasses.replace(run, samples=100, epochs=3, checkpoints=(0, 3)) for run in runs]
    reference, compiled = (train(runs, data, impl=impl).weights for impl in ("reference", "compiled"))
    difference = (compiled - reference)[:, 1].abs().max() / reference[:, 1].abs().max()
    assert difference < 2e-5, difference  # of float32, as in tests/test_mlp_training.py
    assert not torch.equal(compiled[:, 0], compiled[:, 1])
    both = [evaluate(runs[0].architecture, compiled[:, 1], x, y, impl=impl) for impl in ("reference", "compiled")]
    assert (both[0].error_bits == both[1].error_bits).all()
    assert abs(both[0].loss - both[1].loss).max() < 1e-5
    if family == "mlp":  # the Hessian: products, forms and the exact trace
        module, w = runs[0].architecture.build("meta"), compiled[:, 1].double()
        here, there = (surface(module, w, x.double(), y, impl=impl) for impl in ("compiled", "reference"))
        products, forms = there.products(w[:, None]), there.forms(w[:, None])
        assert (here.products(w[:, None]) - products).norm() < 1e-12 * products.norm()
        assert (here.forms(w[:, None]) - forms).norm() < 1e-12 * forms.norm()
        traces = [exact_trace(module, w.float(), x, y, impl=impl) for impl in ("compiled", "reference")]
        assert (traces[0] - traces[1]).norm() < 1e-5 * traces[1].norm()
"""


HERE = platform.machine() in ("x86_64", "AMD64")
NARROWER = {32: ("haswell", "avx512"), 16: ("nehalem", "avx,fma")}  # bytes: processor, what it lacks


def run(width: int) -> subprocess.CompletedProcess[str]:
    """The code above, compiled for registers of so many bytes."""
    processor, missing = NARROWER[width]
    options = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    environment = {**os.environ, **options, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(width), missing]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not HERE, reason="other processors have their own registers")
@pytest.mark.parametrize("width", NARROWER)
def test_narrower_registers(width: int) -> None:
    done = run(width)
    assert done.returncode == 0, done.stderr[-2000:]
