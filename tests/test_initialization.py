"""Initial weights against torch.nn.init in distribution, and independent of companions to the bit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from zoo.architectures import Architecture
from zoo.initialization import INITIALIZATIONS, initial_weights

CNN = Architecture("cnn", {"style": "small_cnn_zoo", "channels": 12, "norm": "batch"}, (3, 16, 16), 10)
KEYS = np.arange(1, 9, dtype=np.uint64) * 7_919


def truncated(weight: Tensor) -> Tensor:
    return nn.init.trunc_normal_(weight, std=0.05, a=-0.1, b=0.1)


BY_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda weight: nn.init.kaiming_uniform_(weight, a=5**0.5),
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "truncated_normal": truncated,
    "orthogonal": nn.init.orthogonal_,
}


def drawn(scheme: str, keys: np.ndarray = KEYS, gain: float = 1.0) -> np.ndarray:
    return initial_weights(CNN, keys, [scheme] * len(keys), np.full(len(keys), gain))


def test_every_scheme_has_a_counterpart() -> None:
    assert BY_TORCH.keys() == INITIALIZATIONS.keys()


@pytest.mark.parametrize("scheme", INITIALIZATIONS)
@pytest.mark.parametrize("name", ["conv1.weight", "output.weight"])
def test_weights_are_distributed_as_those_of_torch(scheme: str, name: str) -> None:
    torch.manual_seed(0)
    shape = CNN.layout.shapes[CNN.layout.names.index(name)]
    ours = CNN.layout.tensor(drawn(scheme, np.arange(64, dtype=np.uint64)), name).reshape(-1)
    theirs = torch.cat([BY_TORCH[scheme](torch.empty(shape, dtype=torch.float64)).flatten() for _ in range(64)]).numpy()
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-3  # both are seeded: this never fails by chance
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.03)
    if scheme not in ("kaiming_normal", "xavier_normal", "orthogonal"):  # bounded ones
        np.testing.assert_allclose(np.abs(ours).max(), np.abs(theirs).max(), rtol=0.01)


@pytest.mark.parametrize("name", ["conv0.weight", "conv1.weight", "output.weight"])
def test_orthogonal_is_orthogonal(name: str) -> None:
    weight = CNN.layout.tensor(drawn("orthogonal"), name)
    rows = CNN.layout.shapes[CNN.layout.names.index(name)][0]
    flat = weight.reshape(len(KEYS), rows, -1)
    short = flat if rows <= flat.shape[2] else flat.swapaxes(1, 2)
    gram = short @ short.swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(gram.shape[-1]), gram.shape), atol=1e-12)


def test_biases_and_norms() -> None:
    for scheme in INITIALIZATIONS:
        tensors = CNN.layout.unflatten(drawn(scheme, gain=3.0))
        for name, value in tensors.items():
            if name.startswith("norm"):
                assert (value == (1.0 if name.endswith(("weight", "running_var")) else 0.0)).all()
            elif name.endswith("bias"):
                fan_in = np.prod(CNN.layout.shapes[CNN.layout.names.index(name.replace("bias", "weight"))][1:])
                assert (np.abs(value) <= fan_in**-0.5).all()
                assert (value != 0).all() if scheme == "torch" else (value == 0).all()


@pytest.mark.parametrize("scheme", INITIALIZATIONS)
def test_companions_and_gain(scheme: str) -> None:
    together = drawn(scheme)
    mixed = initial_weights(CNN, KEYS, [*INITIALIZATIONS, scheme], np.arange(1.0, 9.0))
    for model in range(len(KEYS)):
        np.testing.assert_array_equal(drawn(scheme, KEYS[model : model + 1])[0], together[model])
    weights = CNN.layout.slice("conv1.weight")
    np.testing.assert_array_equal(mixed[-1, weights], 8 * together[-1, weights])
    assert len(np.unique(together[:, weights])) == together[:, weights].size
