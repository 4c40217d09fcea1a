"""What every generator must beat: simple ways to make networks from those that are there.

Each reads the training split alone, in the population's frame, and draws by counter. "mix", "soup" and "retrieval" can
be conditioned on columns: they then choose among the `near` members nearest to what is asked for, by the columns given,
standardised. What they do concerns parameters:
"gaussian" and "pca_gaussian" take statistics of BatchNorm from the mean network, "noise_*" from their member, means of
members average them; all are to be re-estimated (`generators.samples.finish`), but for retrieval and initialisation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from catalog.errors import InvalidSpecError, unknown_name
from generators.codec import fit_codec
from generators.conditions import Conditions
from generators.draws import add_normal, choose, keys, normals, parts
from generators.generator import Draw, Generator
from generators.kind import Kind
from generators.members import Members
from generators.moments import moments
from generators.population import Population
from kernels.random import uniform
from zoo.initialization import initial_weights

MEMBER_SITE, SHARE_SITE, NOISE_SITE, CODE_SITE = 0x61, 0x62, 0x63, 0x64  # of the random streams
Settings = Mapping[str, Any]


def _noise(population: Population, settings: Settings, given: Conditions | None) -> Draw:
    """A random member with N(0, deviation^2) added to each parameter.

    `level` is the deviation over the root mean square of what training parameters deviate from their mean, so that it
    means the same in every zoo and frame; with `relative` False it is the deviation itself, as the published table has
    it (.01, .05 and .1 there are about .04, .2 and .4 relative).
    """
    members, level = Members.of(population), _number("level", settings["level"])
    if type(settings["relative"]) is not bool:
        raise InvalidSpecError(f"relative must be true or false, got {settings['relative']!r}")
    parameters = population.layout.num_parameters
    if settings["relative"]:
        level *= float(np.sqrt(moments(population).variance[:parameters].mean() * _unbiased(population)))

    def draw(numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        drawn = members.at(members.choose(seed, MEMBER_SITE, numbers, 1)[:, 0])
        add_normal(drawn[:, :parameters], level, seed, NOISE_SITE, numbers)
        return drawn

    return draw


def _gaussian(population: Population, settings: Settings, given: Conditions | None) -> Draw:
    """Each parameter from a normal with its own mean and (unbiased) variance over the training split."""
    found, parameters = moments(population), population.layout.num_parameters
    mean, deviation = found.mean.astype(np.float32), np.sqrt(found.variance[:parameters] * _unbiased(population))

    def draw(numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        drawn = np.repeat(mean[None], len(numbers), 0)
        add_normal(drawn[:, :parameters], deviation, seed, NOISE_SITE, numbers)
        return drawn

    return draw


def _pca_gaussian(population: Population, settings: Settings, given: Conditions | None) -> Draw:
    """Normal along the principal components of the training split, with their variances; the mean beyond them.

    `components` 0 takes the fewest that reconstruct held-out networks about as well as any number, see
    `generators.components.choose`.
    """
    codec = fit_codec(population, codec="pca", components=_whole("components", settings["components"], 0))
    unbiased = np.float32(_unbiased(population) ** 0.5)

    def draw(numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        return codec.decode(normals(seed, CODE_SITE, numbers, codec.width).astype(np.float32) * unbiased)

    return draw


def _mix(population: Population, settings: Settings, given: Conditions | None) -> Draw:
    """A point between two random members, anywhere (weight uniform in (0, 1)) or with `midpoint` in the middle."""
    members, near = Members.of(population, given), _whole("near", settings["near"], 2)
    if type(settings["midpoint"]) is not bool:
        raise InvalidSpecError(f"midpoint must be true or false, got {settings['midpoint']!r}")

    def draw(numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        places = members.choose(seed, MEMBER_SITE, numbers, 2, conditions, near)
        share = uniform(keys(seed), SHARE_SITE, numbers, count=1)
        share = np.full_like(share, 0.5) if settings["midpoint"] else share
        out = np.empty((len(numbers), population.layout.size), np.float32)
        for part in parts(len(numbers), 16 * population.layout.size):
            a, b = members.at(places[part, 0]), members.at(places[part, 1])
            out[part] = (1 - share[part]) * a + share[part] * b  # in float64: equal ends give themselves
        return out

    return draw


def _soup(population: Population, settings: Settings, given: Conditions | None) -> Draw:
    """The mean of so many random members, all different; of all where there are fewer."""
    members, near = Members.of(population, given), _whole("near", settings["near"], 1)
    some = min(_whole("members", settings["members"], 1), members.count)

    def draw(numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        places = members.choose(seed, MEMBER_SITE, numbers, some, conditions, near)
        out = np.empty((len(numbers), population.layout.size), np.float32)
        for part in parts(len(numbers), 16 * population.layout.size):
            total = np.zeros((part.stop - part.start, population.layout.size))
            for place in places[part].T:  # in order: the bits of a sum depend on no other sample
                total += members.at(place)
            out[part] = total / some
        return out

    return draw


def _retrieval(population: Population, settings: Settings, given: Conditions | None) -> Draw:
    """A random member as it is."""
    members, near = Members.of(population, given), _whole("near", settings["near"], 1)

    def draw(numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        return members.at(members.choose(seed, MEMBER_SITE, numbers, 1, conditions, near)[:, 0])

    return draw


def _random_init(population: Population, settings: Settings, given: Conditions | None) -> Draw:
    """What the runs of the zoo start from: initialisation and gain are those of a random member."""
    rows, architecture = population.split("train"), population.architecture
    schemes = rows["initialization"].to_numpy() if "initialization" in rows.columns else np.full(len(rows), "torch")
    gains = np.ones(len(rows))
    if "initialization_gain" in rows.columns:
        gains = rows["initialization_gain"].to_numpy().astype(np.float64)

    def draw(numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        places = choose(seed, MEMBER_SITE, numbers, len(rows), 1)[:, 0]
        streams = (uniform(keys(seed), NOISE_SITE, numbers, count=2) * 2**32).astype(np.uint64)
        own = (streams[:, 0] << np.uint64(32)) | streams[:, 1]
        drawn = initial_weights(architecture, own, schemes[places].tolist(), gains[places])
        return np.asarray(drawn.astype(np.float32))

    return draw


def _fit(name: str, population: Population, *, seed: int = 0, **given: Any) -> Generator:
    """Fit the baseline of this name; nothing in it is random, so `seed` changes nothing.

    Raises:
        UnknownNameError: a setting that it has not. InvalidSpecError: a value that is none.
    """
    begin, (make, defaults) = time.perf_counter(), _BASELINES[name]
    for setting in given:
        if setting not in defaults:
            raise unknown_name(f"setting of {name}", setting, defaults)
    settings = {**defaults, **given}
    conditions = None
    if names := _names(settings.get("conditions", ())):
        settings["conditions"] = names
        conditions = Conditions.fit(population.split("train"), names)
    draw = make(population, settings, conditions)
    cost = {"seconds": time.perf_counter() - begin, "iterations": 0}
    return Generator(name, settings, population.source(), draw, conditions, cost)


def _names(given: Any) -> list[str]:
    """Names of columns, from a list or a text with commas, as for `generators.recipe.FlowRecipe`."""
    if not isinstance(given, str | list | tuple):
        raise InvalidSpecError(f"conditions must be names of columns, got {given!r}")
    listed = [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)
    return [name for name in listed if name]


def _unbiased(population: Population) -> float:
    """What the variance over the training split is multiplied with to expect that of other networks."""
    count = len(population.split("train"))
    return count / max(count - 1, 1)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InvalidSpecError(f"{name} must be a finite number from 0, got {value!r}")
    return float(value)


def _whole(name: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise InvalidSpecError(f"{name} must be a whole number, {least} or more, got {value!r}")
    return value


_BASELINES: dict[str, tuple[Any, Settings]] = {
    "noise_small": (_noise, {"level": 0.1, "relative": True}),
    "noise_large": (_noise, {"level": 0.3, "relative": True}),
    "gaussian": (_gaussian, {}),
    "pca_gaussian": (_pca_gaussian, {"components": 0}),
    "mix": (_mix, {"midpoint": False, "conditions": [], "near": 8}),
    "soup": (_soup, {"members": 16, "conditions": [], "near": 32}),
    "retrieval": (_retrieval, {"conditions": [], "near": 8}),
    "random_init": (_random_init, {}),
}
BASELINES: dict[str, Kind] = {name: Kind(partial(_fit, name), defaults) for name, (_, defaults) in _BASELINES.items()}
