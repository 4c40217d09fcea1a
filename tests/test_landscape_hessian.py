"""Trace, top eigenvalue, spectrum and gradient against exact Hessians, closed forms and another library."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo.landscape.chunks
import zoo.landscape.lanczos
from catalog.errors import InvalidSpecError, UnknownNameError
from kernels.curvature.trace import has_exact_trace
from tests.landscape_models import (
    CASES,
    CLASSES,
    LINEAR,
    MLP,
    MODELS,
    RELU,
    as_float32,
    dense_hessians,
    numbers,
    population,
)
from zoo.architectures import Architecture
from zoo.landscape.chunks import OVERFLOW
from zoo.landscape.hessian import gradient_norm, hessian_top_eigenvalue, hessian_trace
from zoo.landscape.lanczos import largest
from zoo.landscape.metric import Measured
from zoo.landscape.metrics import METRICS
from zoo.landscape.probes import PROBE, direction, rademacher
from zoo.landscape.spectrum import ZERO, decode, density, hessian_spectrum

PROBES = 30
LOSS: dict[str, Any] = {"loss_function": "cross_entropy"}
NAMES = ("gradient_norm", "hessian_trace", "hessian_top_eigenvalue", "hessian_spectrum")
SECOND_ORDER = {name: METRICS[name] for name in NAMES}
every_case = pytest.mark.parametrize("architecture", CASES, ids=lambda a: a.name)


def truth(architecture: Architecture, loss_function: str = "cross_entropy") -> tuple[np.ndarray, np.ndarray]:
    """Exact Hessians of its population and their eigenvalues, ascending."""
    key = (architecture.name, loss_function)
    if key not in FOUND:
        hessians = dense_hessians(architecture, *population(architecture), loss_function).numpy()
        FOUND[key] = hessians, np.linalg.eigvalsh(hessians)
    return FOUND[key]


FOUND: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}  # a second each


class Quadratic:
    """The surface of w' H w / 2 at 0."""

    def __init__(self, hessians: Tensor) -> None:
        self.hessians = hessians

    def losses(self) -> Tensor:
        return torch.zeros(len(self.hessians))

    def gradients(self) -> Tensor:
        return torch.zeros(self.hessians.shape[:2])

    def products(self, vectors: Tensor) -> Tensor:
        return vectors @ self.hessians

    def forms(self, vectors: Tensor) -> Tensor:
        return (self.products(vectors) * vectors).sum(-1)


def with_spectra(spectra: np.ndarray) -> Tensor:
    """Symmetric matrices in random directions, (models, n, n) float64, of eigenvalues (models, n)."""
    draws = np.random.default_rng(0).standard_normal((*spectra.shape, spectra.shape[1]))
    turn, _ = np.linalg.qr(draws)
    return torch.from_numpy(turn @ (spectra[..., None] * turn.swapaxes(1, 2)))


@pytest.mark.parametrize("loss_function", ["cross_entropy", "mse"])
@every_case
def test_exact_trace_is_that_of_the_dense_hessian(architecture: Architecture, loss_function: str) -> None:
    _, eigenvalues = truth(architecture, loss_function)
    exact = has_exact_trace(architecture.build("meta"))
    found = hessian_trace(architecture, *population(architecture), loss_function=loss_function, probes=2)
    assert list(found.others["hessian_trace_method"]) == ["exact" if exact else "hutchinson"] * MODELS
    if exact:
        np.testing.assert_allclose(found.value, eigenvalues.sum(1), rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(found.standard_error, 0)


@every_case
def test_hutchinson_is_the_mean_over_its_probes(architecture: Architecture) -> None:
    hessians, _ = truth(architecture)
    weights, x, y = population(architecture)
    found = hessian_trace(architecture, weights, x, y, **LOSS, method="hutchinson", probes=7, seed=3)
    probes = rademacher(3, PROBE, range(7), hessians.shape[1], weights)[:, : hessians.shape[1]].numpy()
    forms = np.einsum("kp,mpq,kq->mk", probes, hessians, probes)
    np.testing.assert_allclose(found.value, forms.mean(1), rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, forms.std(1, ddof=1) / 7**0.5, rtol=1e-9)


def test_probes_are_signs_and_do_not_depend_on_what_is_drawn_beside_them() -> None:
    many = rademacher(5, PROBE, range(400), 70, torch.zeros(90))
    assert set(many[:, :70].unique().tolist()) == {-1, 1}
    assert not many[:, 70:].any()
    assert torch.equal(many[10:12], rademacher(5, PROBE, range(10, 12), 70, torch.zeros(90)))
    assert torch.equal(many[:2, :33], rademacher(5, PROBE, range(2), 33, torch.zeros(33)))
    assert abs(many.mean(0)).max() < 4.5 / 400**0.5
    products = (many[:, :70].T @ many[:, :70] / 400 - torch.eye(70)).abs()
    assert products.max() < 5 / 400**0.5  # 2,415 pairs of standard deviation 1/20
    assert not torch.equal(many, rademacher(6, PROBE, range(400), 70, torch.zeros(90)))


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_standard_errors_of_the_trace_are_what_they_say(method: str) -> None:
    """Over seeds, (estimate - truth) / standard error has mean 0, spread 1, and is small as often as it should."""
    weights, x, y = population(RELU)
    _, eigenvalues = truth(RELU)
    runs = [hessian_trace(RELU, weights[:1], x, y, **LOSS, method=method, probes=18, seed=seed) for seed in range(100)]
    z = np.array([(run.value[0] - eigenvalues[0].sum()) / run.standard_error[0] for run in runs])
    # Student's t of 17 degrees of freedom (5 for Hutch++) has spread 1.06 (1.29) and 95 (91) of 100 within 2.1
    assert abs(z.mean()) < 0.4
    assert 0.75 < z.std() < 1.8
    assert (abs(z) < 2.1).mean() > 0.82


def test_hutch_plus_plus_is_nearer_on_a_fast_decaying_spectrum() -> None:
    weights, x, y = population(CASES[3])
    _, eigenvalues = truth(CASES[3])
    errors = {
        method: np.array(
            [hessian_trace(CASES[3], weights, x, y, **LOSS, method=method, probes=30, seed=s).value for s in range(5)]
        )
        - eigenvalues.sum(1)
        for method in ("hutchinson", "hutch++")
    }
    assert (errors["hutch++"] ** 2).mean() < (errors["hutchinson"] ** 2).mean() / 100


def test_hutch_plus_plus_is_exact_below_the_rank_of_its_sketch() -> None:
    """All of the Hessian of a linear network with mse is in the range: 15 parameters, 15 vectors."""
    weights, x, y = population(LINEAR)
    found = hessian_trace(LINEAR, weights, x, y, loss_function="mse", method="hutch++", probes=48)
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1)
    np.testing.assert_allclose(found.value, 2 * float(inputs.square().sum(1).mean()), rtol=1e-10)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-10)


def test_a_quadratic_loss_in_closed_form() -> None:
    """A linear network with mse has the Hessian 2 / classes * (second moments of the inputs), once for each class."""
    weights, x, y = population(LINEAR)
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1)
    eigenvalues = np.linalg.eigvalsh((inputs.T @ inputs / len(x)).numpy()) * 2 / CLASSES
    trace = hessian_trace(LINEAR, weights, x, y, loss_function="mse", method="hutchinson", probes=400)
    assert (abs(trace.value - CLASSES * eigenvalues.sum()) < 4 * trace.standard_error).all()
    top = hessian_top_eigenvalue(LINEAR, weights, x, y, loss_function="mse", tolerance=1e-9)
    np.testing.assert_allclose(top.value, eigenvalues[-1], rtol=1e-12)
    np.testing.assert_allclose(numbers(top, "hessian_lowest_ritz"), eigenvalues[0], rtol=1e-9)
    assert max(numbers(top, "hessian_top_eigenvalue_iterations")) <= 5  # as many as there are different eigenvalues
    spectrum = hessian_spectrum(LINEAR, weights, x, y, loss_function="mse", steps=12)
    np.testing.assert_allclose(spectrum.value, 0, atol=1e-12)
    nodes, shares = (curves(spectrum, kind)[0] for kind in ("nodes", "weights"))
    for node, share in zip(nodes, shares, strict=True):
        assert share < 1e-12 or abs(eigenvalues - node).min() < 1e-9


@every_case
def test_top_eigenvalue(architecture: Architecture) -> None:
    _, eigenvalues = truth(architecture)
    weights, x, y = population(architecture)
    found = hessian_top_eigenvalue(architecture, weights, x, y, **LOSS)
    residual = numbers(found, "hessian_top_eigenvalue_residual")
    assert (residual <= 1.001e-3 * found.value).all()
    assert (abs(found.value - eigenvalues[:, -1]) <= residual + 1e-12).all()
    np.testing.assert_allclose(found.value, eigenvalues[:, -1], rtol=1e-5)
    assert (numbers(found, "hessian_lowest_ritz") >= eigenvalues[:, 0] - 1e-12).all()
    np.testing.assert_array_equal(found.standard_error, 0)
    tight = hessian_top_eigenvalue(architecture, weights, x, y, **LOSS, tolerance=1e-9, seed=1)
    np.testing.assert_allclose(tight.value, eigenvalues[:, -1], rtol=1e-12)
    single = hessian_top_eigenvalue(architecture, *as_float32(weights, x, y), **LOSS, tolerance=1e-9)
    np.testing.assert_allclose(single.value, eigenvalues[:, -1], rtol=3e-6)  # what float32 leaves


def test_one_that_does_not_converge_keeps_value_and_residual() -> None:
    weights, x, y = population(MLP)
    hessians, eigenvalues = truth(MLP)
    found = hessian_top_eigenvalue(MLP, weights, x, y, **LOSS, iterations=2)
    np.testing.assert_array_equal(numbers(found, "hessian_top_eigenvalue_iterations"), 2)
    residual = numbers(found, "hessian_top_eigenvalue_residual")
    assert (residual > 1e-3 * found.value).all()
    assert (abs(eigenvalues - found.value[:, None]).min(1) <= residual).all()
    start = direction(0, hessians.shape[1], weights).numpy()
    space, _ = np.linalg.qr(np.stack([np.broadcast_to(start, hessians.shape[:2]), hessians @ start], -1))
    ritz = np.linalg.eigvalsh(space.swapaxes(1, 2) @ hessians @ space)
    np.testing.assert_allclose(found.value, ritz[:, 1], rtol=1e-9)
    np.testing.assert_allclose(numbers(found, "hessian_lowest_ritz"), ritz[:, 0], rtol=1e-9)


SPECTRA = {
    "strong negative curvature": np.linspace(-100, 1, 40),
    "fast decay": 2.0 ** -np.arange(40),
    "all negative": -np.arange(1.0, 41),
    "one eigenvalue": np.full(40, 3.0),
    "two eigenvalues": np.repeat([-1.0, 2.0], 20),
    "rank one": np.eye(40)[0] * 5,
    "zero": np.zeros(40),
    "tiny": 1e-30 * np.arange(40),
}


@pytest.mark.parametrize("stay", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanczos_of_given_spectra(dtype: torch.dtype, stay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one batch: some models leave long before others, in whatever way they do."""
    monkeypatch.setattr(zoo.landscape.lanczos, "STAY", stay)
    spectra = np.stack(list(SPECTRA.values()))
    hessians = with_spectra(spectra).to(dtype)
    batches = []

    def of(some: Tensor) -> Quadratic:
        batches.append(len(some))
        return Quadratic(hessians[some])

    start = direction(0, 40, hessians)
    value, residual, lowest, steps = largest(of, start, len(spectra), 40, 1e-4, 40)
    size = abs(spectra).max(1)
    rounding = 100 * torch.finfo(dtype).eps * size
    assert (abs(value - spectra.max(1)) <= 1e-4 * abs(spectra.max(1)) + rounding).all()
    assert (residual <= 1e-4 * abs(spectra.max(1)) + rounding).all()
    assert (lowest >= spectra.min(1) - rounding).all()
    used = dict(zip(SPECTRA, steps, strict=True))
    assert used["two eigenvalues"] == used["rank one"] == 2
    assert used["one eigenvalue"] == used["zero"] == 1
    assert used["fast decay"] < 12
    assert batches[0] == batches[-1] == len(spectra)
    assert len(batches) == 2 if stay == 0 else len(batches) > 2
    alone = [largest(lambda some: Quadratic(hessians[[model]]), start, 1, 40, 1e-4, 40) for model in range(len(size))]  # noqa: B023  # called at once
    np.testing.assert_allclose(np.concatenate(alone, 1)[0], value, rtol=0, atol=rounding.max())
    np.testing.assert_array_equal(np.concatenate(alone, 1)[3], steps)


@pytest.mark.parametrize("steps", [1, 3, 60])
@every_case
def test_each_probe_has_a_gauss_quadrature(architecture: Architecture, steps: int) -> None:
    """Its first 2 * steps moments are those of the probe's spectral measure, v' H^k v / v' v."""
    hessians, _ = truth(architecture)
    weights, x, y = population(architecture)
    found = hessian_spectrum(architecture, weights, x, y, **LOSS, probes=2, steps=steps)
    count = hessians.shape[1]
    probes = rademacher(0, PROBE, range(2), count, weights)[:, :count].numpy()
    for model in range(MODELS):
        nodes, shares = (curves(found, kind)[model].reshape(2, steps) for kind in ("nodes", "weights"))
        np.testing.assert_allclose(shares.sum(1), 0.5, rtol=1e-12)
        moved = probes
        for power in range(1, min(2 * steps, 8)):
            moved = moved @ hessians[model]
            np.testing.assert_allclose(
                (shares * nodes**power).sum(1) * 2, (moved * probes).sum(1) / count, rtol=1e-8, atol=1e-13
            )


def curves(found: Measured, kind: str) -> list[np.ndarray]:
    column = found.others[f"hessian_spectrum_{kind}"]
    assert not isinstance(column, np.ndarray)
    return [decode(curve) for curve in column if isinstance(curve, bytes)]


def jackknifed(found: Measured, probe: int) -> np.ndarray:
    """The share of negative curvature without one of the probes, (models,)."""
    nodes, shares = (
        np.delete(np.stack(curves(found, kind)).reshape(MODELS, PROBES, -1), probe, 1) for kind in ("nodes", "weights")
    )
    return (shares * np.maximum(-nodes, 0)).sum((1, 2)) / (shares * abs(nodes)).sum((1, 2))


@every_case
def test_spectrum_against_all_eigenvalues(architecture: Architecture) -> None:
    """Negative share, traces of H and H^2 within four standard errors; the density too, and nearly equal."""
    _, eigenvalues = truth(architecture)
    found = hessian_spectrum(architecture, *population(architecture), **LOSS, probes=PROBES, steps=12)
    share = np.maximum(-eigenvalues, 0).sum(1) / abs(eigenvalues).sum(1)
    assert (abs(found.value - share) < 4 * found.standard_error + 1e-12).all()
    assert (found.standard_error < 0.1).all()
    without = [jackknifed(found, probe) for probe in range(PROBES)]
    np.testing.assert_allclose(found.standard_error, np.std(without, 0) * (PROBES - 1) ** 0.5, rtol=0.15, atol=1e-12)
    count = eigenvalues.shape[1]
    for model, (nodes, shares) in enumerate(zip(curves(found, "nodes"), curves(found, "weights"), strict=True)):
        for power in (1, 2):
            moments = count * (shares * nodes**power).reshape(PROBES, -1).sum(1) * PROBES
            error = moments.std(ddof=1) / PROBES**0.5
            assert abs(moments.mean() - (eigenvalues[model] ** power).sum()) < 4 * error
        width = 0.3 * eigenvalues[model].std()
        grid = np.linspace(eigenvalues[model, 0] - 6 * width, eigenvalues[model, -1] + 6 * width, 400)
        probes = zip(nodes.reshape(PROBES, -1), shares.reshape(PROBES, -1) * PROBES, strict=True)
        each = np.stack([density(*probe, grid, width) for probe in probes])
        exact = density(eigenvalues[model], np.full(count, 1 / count), grid, width)
        np.testing.assert_allclose(density(nodes, shares, grid, width), each.mean(0), rtol=1e-9, atol=1e-12)
        error = each.std(0, ddof=1) / PROBES**0.5
        assert (abs(each.mean(0) - exact) < 4 * error + 0.01 * exact.max()).all()  # twelve steps resolve no more
        step = grid[1] - grid[0]
        assert each.mean(0).sum() * step == pytest.approx(1, abs=1e-3)
        assert abs(each.mean(0) - exact).sum() * step < 0.1  # of mass 1 each


def test_standard_errors_of_the_spectrum_are_what_they_say() -> None:
    weights, x, y = population(RELU)
    _, eigenvalues = truth(RELU)
    share = np.maximum(-eigenvalues[0], 0).sum() / abs(eigenvalues[0]).sum()
    runs = [hessian_spectrum(RELU, weights[:1], x, y, **LOSS, probes=8, steps=6, seed=seed) for seed in range(40)]
    z = np.array([(run.value[0] - share) / run.standard_error[0] for run in runs])
    assert abs(z.mean()) < 0.75  # four standard deviations of the mean of 40
    assert 0.7 < z.std() < 1.8


@every_case
def test_gradient_norm(architecture: Architecture) -> None:
    weights, x, y = population(architecture)
    found = gradient_norm(architecture, weights, x, y, **LOSS)
    module = architecture.build().double().eval()
    for model, row in enumerate(weights):
        module.load_state_dict(architecture.layout.unflatten(row))
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        squares = [float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None]
        assert found.value[model] == pytest.approx(sum(squares) ** 0.5, rel=1e-12)
    np.testing.assert_array_equal(found.standard_error, 0)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")  # the way of pyhessian
@every_case
def test_against_pyhessian(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces, top eigenvalues and shares of negative curvature of the same models within the joint error."""
    pyhessian = pytest.importorskip("pyhessian")

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:  # left torch in 1.13
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, 0 * values], 1), vectors

    monkeypatch.setattr(torch, "eig", eig, raising=False)
    torch.manual_seed(0)
    weights, x, y = population(architecture)
    trace = hessian_trace(architecture, weights, x, y, **LOSS, method="hutchinson")
    top = hessian_top_eigenvalue(architecture, weights, x, y, **LOSS)
    spectrum = hessian_spectrum(architecture, weights, x, y, **LOSS, probes=10, steps=10)
    _, eigenvalues = truth(architecture)
    for model, row in enumerate(weights[: 2 if architecture.family == "mlp" else 1]):
        module = architecture.build().double()
        module.load_state_dict(architecture.layout.unflatten(row))
        peer = pyhessian.hessian(module, torch.nn.CrossEntropyLoss(), data=(x, y), cuda=False)
        forms = np.array(peer.trace(maxIter=100, tol=-np.inf))  # any other stops at once where the trace is negative
        assert len(forms) == 100
        joint = np.hypot(forms.std(ddof=1) / 10, trace.standard_error[model])
        assert abs(forms.mean() - trace.value[model]) < 4 * joint
        if eigenvalues[model, -1] > -1.1 * eigenvalues[model, 0]:  # power iteration finds the largest in magnitude
            assert peer.eigenvalues(tol=1e-6)[0][0] == pytest.approx(top.value[model], rel=1e-3)
        nodes, shares = (np.array(found, np.float64) for found in peer.density(iter=10, n_v=10))
        negative, size = (shares * np.maximum(-nodes, 0)).sum(1), (shares * abs(nodes)).sum(1)
        share = negative.mean() / size.mean()
        error = (negative - share * size).std(ddof=1) / size.mean() / 10**0.5
        assert abs(share - spectrum.value[model]) < 4 * np.hypot(error, spectrum.standard_error[model])


FEW: dict[str, dict[str, Any]] = {  # settings that make the metrics cheap
    "hessian_trace": {"method": "hutchinson", "probes": 5},
    "hessian_top_eigenvalue": {"iterations": 30},
    "hessian_spectrum": {"probes": 3, "steps": 4},
}


def all_of(architecture: Architecture, *data: Tensor) -> dict[str, Measured]:
    """Everything measured cheaply."""
    found = {
        name: metric.measure(architecture, *data, **LOSS, **FEW.get(name, {})) for name, metric in SECOND_ORDER.items()
    }
    found["hutch++"] = hessian_trace(architecture, *data, **LOSS, method="hutch++", probes=12)
    return found


def same(a: Measured, b: Measured, rows: Any = slice(None)) -> None:
    """Equal to rounding of float64; iterations to the bit."""
    np.testing.assert_allclose(a.value, b.value[rows], rtol=1e-7, atol=1e-11)
    np.testing.assert_allclose(a.standard_error, b.standard_error[rows], rtol=1e-6, atol=1e-9)
    for name, column in b.others.items():
        if not isinstance(column, np.ndarray):
            continue
        np.testing.assert_allclose(numbers(a, name), column[rows], rtol=1e-4, atol=1e-7)


@every_case
def test_chunks_and_companions_change_nothing(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x, y = population(architecture)
    labels = torch.stack([(y + model) % CLASSES for model in range(MODELS)])  # each has its own
    whole = all_of(architecture, weights, x, labels)
    alone = all_of(architecture, weights[2:3], x, labels[2])
    for name, found in whole.items():
        same(alone[name], found, slice(2, 3))
    for vectors, states in ((1, 1 << 28), (1 << 28, 1), (60 * weights.shape[1] * 8, 1 << 28)):
        monkeypatch.setattr(zoo.landscape.chunks, "VECTORS", vectors)
        monkeypatch.setattr(zoo.landscape.chunks, "STATES", states)
        for name, found in all_of(architecture, weights, x, labels).items():
            same(found, whole[name])


def test_exact_trace_of_own_labels() -> None:
    weights, x, y = population(RELU)
    labels = torch.stack([(y + model) % CLASSES for model in range(MODELS)])
    exact = dense_hessians(RELU, weights, x, labels).diagonal(dim1=1, dim2=2).sum(1)
    found = hessian_trace(RELU, weights, x, labels, **LOSS, method="exact")
    np.testing.assert_allclose(found.value, exact, rtol=1e-9)


@every_case
def test_a_model_that_overflows_hurts_no_other(architecture: Architecture) -> None:
    weights, x, y = as_float32(*population(architecture))
    broken = weights.clone()
    for name in ("output.weight", "output.bias"):  # two logits become infinite, and their difference none
        architecture.layout.tensor(broken, name)[1] = 3e38
    others = [0, 2, 3]
    for (name, found), whole in zip(
        all_of(architecture, broken, x, y).items(), all_of(architecture, weights, x, y).values(), strict=True
    ):
        assert np.isnan(found.value[1]), name
        assert np.isnan(found.standard_error[1])
        assert list(found.reasons or ()) == ["", OVERFLOW, "", ""]
        np.testing.assert_allclose(found.value[others], whole.value[others], rtol=1e-4, atol=1e-6)
        for column in found.others.values():
            if isinstance(column, list) and isinstance(column[1], bytes):
                assert [len(curve) > 0 for curve in column] == [True, False, True, True]


def test_a_flat_loss() -> None:
    """Softmax saturated to the last bit: no gradient, no curvature."""
    weights, x, y = population(MLP)
    weights.zero_()
    MLP.layout.tensor(weights, "output.bias")[:, 0] = 1000
    found = all_of(MLP, weights, x, torch.zeros_like(y))
    spectrum = found.pop("hessian_spectrum")
    assert list(spectrum.reasons or ()) == [ZERO] * MODELS
    for measured in found.values():
        np.testing.assert_array_equal(measured.value, 0)
        np.testing.assert_array_equal(measured.standard_error, 0)
    np.testing.assert_array_equal(numbers(found["hessian_top_eigenvalue"], "hessian_top_eigenvalue_residual"), 0)


def test_one_draw_has_no_error() -> None:
    data = population(MLP)
    found = [
        hessian_trace(MLP, *data, **LOSS, method="hutchinson", probes=1),
        hessian_trace(MLP, *data, **LOSS, method="hutch++", probes=3),
        hessian_spectrum(MLP, *data, **LOSS, probes=1),
    ]
    for measured in found:
        assert np.isfinite(measured.value).all()
        assert np.isnan(measured.standard_error).all()
        assert measured.reasons == [""] * MODELS


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_nobody(name: str) -> None:
    weights, x, y = population(MLP)
    found = METRICS[name].measure(MLP, weights[:0], x, y, **LOSS)
    assert found.value.shape == found.standard_error.shape == (0,)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("hessian_trace", {"probes": 0}, "probes must be a whole number, 1 or more, got 0"),
        ("hessian_trace", {"probes": 2.5}, "whole number"),
        ("hessian_trace", {"probes": True}, "whole number"),
        ("hessian_trace", {"probes": 2, "method": "hutch++"}, "3 or more"),
        ("hessian_trace", {"seed": -1}, "seed must be"),
        ("hessian_top_eigenvalue", {"iterations": 0}, "iterations must be"),
        ("hessian_top_eigenvalue", {"tolerance": 0}, "tolerance must be a number above zero"),
        ("hessian_top_eigenvalue", {"tolerance": float("nan")}, "above zero"),
        ("hessian_top_eigenvalue", {"seed": "a"}, "seed must be"),
        ("hessian_spectrum", {"probes": 0}, "probes must be"),
        ("hessian_spectrum", {"steps": 0}, "steps must be"),
    ],
)
def test_settings_that_make_no_sense(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSpecError, match=said):
        METRICS[name].measure(MLP, *population(MLP), **LOSS, **settings)


def test_bad_input_is_named() -> None:
    weights, x, y = population(MLP)
    with pytest.raises(UnknownNameError, match="auto, exact, hutch\\+\\+, hutchinson; did you mean 'hutchinson'"):
        hessian_trace(MLP, weights, x, y, **LOSS, method="hutchins")
    for name, metric in SECOND_ORDER.items():
        cases: list[tuple[dict[str, Any], str]] = [
            ({"loss_function": "hinge"}, "cross_entropy, mse"),
            ({"weights": weights[:, 1:]}, f"{MLP.layout.size}.* for {MLP.name}"),
            ({"y": y[1:]}, "of 16 samples"),
            ({"y": torch.stack([y, y])}, "each of 4 models, got 2"),
            ({"x": x[:0], "y": y[:0]}, "no samples"),
            ({"x": x[:, 1:]}, "inputs must be"),
        ]
        for changed, said in cases:
            given = {"weights": weights, "x": x, "y": y, **LOSS, **changed}
            with pytest.raises((ValueError, KeyError), match=said):
                metric.measure(MLP, **given)
        assert json.loads(json.dumps(metric.settings)) == metric.settings, name


@every_case
def test_columns_are_the_declared_ones(architecture: Architecture) -> None:
    weights, x, y = as_float32(*population(architecture))
    for name, metric in SECOND_ORDER.items():
        found = metric.measure(architecture, weights, x, y, **LOSS, **FEW.get(name, {}))
        assert set(found.others) == set(metric.columns), name
        assert found.value.dtype == found.standard_error.dtype == np.float64
        assert all(len(column) == MODELS for column in found.others.values())
        assert all(c.dtype == np.float64 for c in found.others.values() if isinstance(c, np.ndarray))
