"""The generator card: its file, its sentences, and judged generators whose worth is known beforehand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalog.errors import FormatError, GeneratorError, InvalidSpecError, MissingDataError, UnknownNameError
from generators.baselines import BASELINES
from generators.evaluation.card import FILE, Card, CodecReport, Fidelity, FineTuned, Spread, read_card
from generators.evaluation.verdicts import verdicts
from generators.evaluation.yardstick import MULTIPLES
from generators.generator import Generator
from generators.judge import judge, write_card
from generators.kinds import fit
from generators.population import Population, population
from tests.hand_cards import card, row
from zoo.alignment.align import align
from zoo.build import build
from zoo.evaluate import evaluate
from zoo.spec import ZooSpec
from zoo.symmetries import symmetry_of

SAMPLES = 48


def test_a_card_comes_back_from_its_file(tmp_path: Path) -> None:
    fidelity = Fidelity("test_accuracy", ("0.7", "0.9"), (0.7, 0.8), (0.01, 0.01), 0.9, 0.05, 0.1, None)
    made = card(fidelity=[fidelity], codec=None)
    made = dataclasses.replace(made, health={"norm_ratio": math.nan}, verdicts=verdicts(made))
    write_card(made, tmp_path / "out")
    found = read_card(tmp_path / "out")
    assert json.dumps(found.to_json()) == json.dumps(made.to_json())
    assert math.isnan(found.health["norm_ratio"])
    assert found.samples == made.samples
    assert found.fidelity == made.fidelity
    assert (tmp_path / "out" / "card.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["card.json", "card.png"]


def changed(path: str, value: Any) -> dict[str, Any]:
    """A card as JSON with the member at a path replaced, or taken out for None."""
    content: Any = json.loads(json.dumps(card().to_json()))
    place = content
    *above, name = path.split(".")
    for part in above:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if value is None:
        del place[name]
    else:
        place[name] = value
    found: dict[str, Any] = content
    return found


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", 2, "a card of format 2; this version reads 1"),
        ("format", True, "not a generator card"),
        ("samples", None, "card lacks 'samples'"),
        ("more", 1, "card has 'more', which this version does not know"),
        ("samples.count", 1.5, "card.samples.count must be int, got 1.5"),
        ("samples.rms", "low", "card.samples.rms must be a number"),
        ("samples.broken", True, "card.samples.broken must be a number"),
        ("baselines.0.frame", 3, r"card.baselines\[0\].frame must be str"),
        ("protocol.multiples", {"a": 1}, "card.protocol.multiples must be a list"),
        ("generator.settings", [1], "card.generator.settings must be an object"),
        ("codec", 1, "card.codec must be an object"),
        ("protocol.multiples", [1.0], "a value at each multiple"),
        ("finetuned.0.error", [0.1], "as many values as errors"),
        ("samples.points", [[1.0]], "pairs of novelty and accuracy"),
    ],
)
def test_what_is_no_card_is_refused(path: str, value: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        Card.from_json(changed(path, value))


def test_files_that_are_no_cards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="holds no card"):
        read_card(tmp_path)
    for text in ("{", "[1]", "[" * 100_000, '{"format": NaN}', "null"):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(FormatError):
            read_card(tmp_path)


def test_a_spread_leaves_out_what_is_not_finite() -> None:
    values = np.array([4.0, np.nan, 1.0, 2.0, np.inf, 3.0])
    found = Spread.of(values)
    assert (found.count, found.low, found.median, found.high, found.mean) == (4, 1, 2.5, 4, 2.5)
    assert found.error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    assert Spread.of([]).count == 0
    assert math.isnan(Spread.of([np.nan]).mean)


def said(made: Card, start: str) -> list[str]:
    """Verdicts that begin so."""
    return [text for text in verdicts(made) if text.startswith(start)]


def test_a_copy_is_called_a_copy() -> None:
    near, far = row("flow", ratio=0.09, iou=0.3, frame="universe"), row("flow", ratio=0.11, iou=0.3, frame="universe")
    assert "0.09 of the zoo's spacing" in said(card(near), "copies its training set")[0]
    assert not said(card(far), "copies its training set")
    alike = row("flow", ratio=0.5, iou=0.86, frame="universe")  # as many errors shared as noise_small has, 0.85
    assert "0.86 of its errors" in said(card(alike), "copies its training set")[0]
    assert not said(card(row("flow", ratio=0.5, iou=0.84, frame="universe")), "copies its training set")
    assert not said(card(alike, []), "copies its training set")


def test_collapse_has_two_names() -> None:
    assert "0.25 of what" in said(card(row("flow", rms=0.25)), "collapses to the mean")[0]
    assert not said(card(row("flow", rms=0.31)), "collapses to the mean")
    mine = row("flow")
    one = dataclasses.replace(mine, diversity=dataclasses.replace(mine.diversity, distance=0.02))
    assert "0.02" in said(card(one), "draws nearly one network")[0]
    assert not said(card(mine), "draws nearly one network")


def best(share: float, count: int = 1024, at: float = 1.0, name: str = "flow", **changes: Any) -> Any:
    """A row with this share of novel and performant networks at a multiple, none elsewhere."""
    made = row(name, count=count, **changes)
    shares = tuple(share if m == at else 0.0 for m in (0.25, 0.5, 0.75, 1.0, 2.0, 3.0, 4.0, 6.0))
    errors = tuple(math.sqrt(p * (1 - p) / count) for p in shares)
    return dataclasses.replace(
        made, novel_quotient=dataclasses.replace(made.novel_quotient, share=shares, error=errors)
    )


def test_beating_every_baseline_takes_two_standard_errors_and_enough_samples() -> None:
    rivals = [best(0.20, name="soup"), best(0.05, name="mix")]
    (text,) = said(card(best(0.30), rivals), "beats every baseline at N&P m >= 1")
    assert text.endswith(
        "at m = 1, 0.300 ± 0.014 against 0.200 ± 0.013 of soup"
    )  # sqrt(.3 * .7 / 1024), sqrt(.16/1024)
    assert not said(card(best(0.22), rivals), "beats every baseline")  # 1.1 errors above
    assert not said(card(best(0.30, 1000), rivals), "beats every baseline")
    assert not said(card(best(0.30), [best(0.2, 1000, name="soup"), *rivals]), "beats every baseline")
    assert not said(card(best(0.30), [*rivals, best(0.31, name="gaussian")]), "beats every baseline")
    below = card(best(0.30, at=0.5), [best(0.2, name="soup", at=0.5)])
    assert not said(below, "beats every baseline")
    assert "at m = 0.5" in said(below, "above every baseline at N&P m < 1")[0]
    assert not said(card(best(0.30), []), "beats every baseline")  # there is nobody to beat
    assert said(card(best(0.30, 1000), rivals), "judged on 1000 samples")
    assert not said(card(best(0.30), rivals), "judged on")


def test_a_few_samples_above_none_are_no_win() -> None:
    """5 of 1,024 against 0: 2.2 plain standard errors, and p = .06 by Fisher's exact test."""
    assert not said(card(best(5 / 1024), [best(0.0, name="soup")]), "beats")
    assert said(card(best(12 / 1024), [best(0.0, name="soup")]), "beats")


def test_losing_is_said_by_baseline_and_aspect() -> None:
    rivals = [row("soup", 0.95, 0.8), row("mix", 0.97, 0.3), row("mix", 0.9, 0.3, frame="universe")]
    mine = row("flow", 0.85, 0.6)
    (accuracy,) = said(card(mine, rivals), "loses in accuracy")
    assert accuracy.index("soup") < accuracy.index("mix 9")
    assert "universe" not in accuracy  # of a baseline's frames the best
    assert not said(card(row("flow", 0.98, 0.6), rivals), "loses in accuracy")
    lost = said(card(mine, rivals), "loses to soup at N&P")
    assert "at m = 0.5, " in lost[0]
    assert "at m = 0.75, " in lost[0]
    assert not said(card(row("flow", 0.96, 0.9), rivals), "loses to soup at N&P")
    itself = dataclasses.replace(rivals[0], fingerprint=mine.fingerprint)
    assert not said(card(mine, [itself]), "loses")  # a baseline does not lose to itself


def test_nothing_new_and_good_is_said() -> None:
    assert "none of 1024" in said(card(best(0.3, at=0.75)), "no sample is both novel and performant")[0]
    assert not said(card(best(0.001)), "no sample is both novel and performant")


def test_fine_tuning_is_compared_epoch_by_epoch() -> None:
    def curve(name: str, *accuracy: float) -> FineTuned:
        return FineTuned(name, 32, (0, 1, 5), accuracy, (0.01,) * 3)

    mine = curve("samples", 0.5, 0.8, 0.95)
    texts = verdicts(card(finetuned=[mine, curve("soup", 0.9, 0.9, 0.96), curve("random", 0.1, 0.7, 0.99)]))
    texts = tuple(text for text in texts if text.startswith("fine-tuned"))
    assert len(texts) == 2  # not at epoch 0, which is another aspect
    assert texts[0] == "fine-tuned for 1 epoch, loses to soup 90.0 ± 1.0 %: 80.0 ± 1.0 %"
    assert texts[1].startswith("fine-tuned for 5 epochs, loses to random initialisation 99.0")
    assert not said(card(finetuned=[mine]), "fine-tuned")
    assert not said(card(finetuned=[curve("soup", 1, 1, 1)]), "fine-tuned")


@pytest.mark.parametrize(
    ("spearman", "difference", "without", "follows"),
    [(0.9, 0.1, 0.3, True), (0.49, 0.1, 0.3, False), (0.9, 0.3, 0.3, False), (math.nan, 0.1, math.nan, True)],
)
def test_conditions_are_followed_or_not(spearman: float, difference: float, without: float, follows: bool) -> None:
    asked = Fidelity("test_accuracy", ("1", "2"), (1, 2), (0.1, 0.1), spearman, difference, without, None)
    found = said(card(fidelity=[asked]), "does not follow its condition test_accuracy")
    assert bool(found) != follows
    unmeasured = dataclasses.replace(asked, spearman=0.0, reason="it is how a network was made")
    assert not said(card(fidelity=[unmeasured]), "does not follow")


def test_what_the_codec_loses_and_what_is_broken_is_said() -> None:
    assert said(card(codec=CodecReport(0.974, 0.951, 0.4, 0.9, 0.9)), "codec loses 2.3 points")
    assert not said(card(codec=CodecReport(0.974, 0.970, 0.4, 0.1, 0.1)), "codec")
    assert not said(card(codec=None), "codec")
    assert said(card(row("flow", broken=0.031)), "3.1 % of the samples are broken")
    assert not said(card(row("flow")), "0")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Population:
    """40 MLPs 64-16-10 on digits in the frame "universe", every other checkpoint left out."""
    path = tmp_path_factory.mktemp("card") / "digits.zoo"
    hyper = {"epochs": 5, "learning_rate": 0.1}
    zoo = build(ZooSpec("d", numbers={"width": 16}, hyperparameters=hyper, seeds=tuple(range(40))), path, workers=0)
    align(path)
    return population(zoo, frame="universe", held_out=0.2)


def drawing(known: Population, draw: Any, **changes: Any) -> Generator:
    """A generator that draws by a function of the numbers."""
    about = {"kind": "flow", "settings": {}, "source": known.source(), "draw": lambda n, seed, c: draw(n), **changes}
    return Generator(**about)


def quick(generator: Generator, known: Population | None, **changes: Any) -> Card:
    return judge(generator, known, **{"samples": SAMPLES, "baselines": (), "finetune": 0, **changes})


def test_copies_have_no_novelty_and_independent_runs_have_one(known: Population) -> None:
    found = quick(fit("retrieval", known), known)
    mine = found.samples
    assert (mine.raw.high, mine.quotient.high, mine.disagreement.high) == (0, 0, 0)
    assert mine.error_iou.low == 1
    assert mine.novel_quotient.share == (0.0,) * len(MULTIPLES)
    assert said(found, "copies its training set")
    assert found.training.quotient.median == pytest.approx(1)  # by definition of the spacing
    assert found.training.raw.median == pytest.approx(1)
    assert found.held_out.quotient.median == pytest.approx(1, abs=0.1)  # the same process made them
    assert found.held_out.count == 16
    assert mine.rms == pytest.approx(1, abs=0.05)
    assert found.protocol.alpha == pytest.approx(0.92 * found.training.accuracy.median)


def test_copies_in_disguise_are_found_in_the_quotient_alone(known: Population) -> None:
    symmetry, weights = symmetry_of(known.architecture), known.read("train")

    def draw(numbers: np.ndarray) -> np.ndarray:
        some = weights[numbers % len(weights)]
        scales = {"hidden0": np.exp2(np.random.default_rng(0).integers(-2, 3, (len(some), 16)))}
        moved: np.ndarray = symmetry.permute(symmetry.scale(some, scales), symmetry.random(len(some), 0))
        return moved

    found = quick(drawing(known, draw), known)
    assert found.samples.quotient.high < 1e-3  # rounding of float32 in distances of squares
    assert found.samples.raw.low > 0.5
    assert found.samples.error_iou.low == 1
    assert said(found, "copies its training set")
    assert found.samples.novel_raw.share[MULTIPLES.index(0.5)] == found.samples.novel_raw.share[0] > 0.9
    assert found.samples.novel_quotient.share[MULTIPLES.index(0.1)] == 0


def test_broken_samples_count_and_hurt_no_others(known: Population) -> None:
    whole = fit("noise_large", known)

    def draw(numbers: np.ndarray) -> np.ndarray:
        drawn = whole.draw(numbers, 0, None)
        drawn[numbers % 4 == 0, 3] = np.nan
        return drawn

    found = quick(drawing(known, draw), known).samples
    assert (found.count, found.broken, found.accuracy.count) == (SAMPLES, 0.25, 36)
    assert sum(found.accuracies) == found.disagreement.count == found.error_iou.count == 36
    truth = quick(whole, known)
    everyone, alpha = truth.samples, truth.protocol.alpha
    whole_ones = [point for number, point in enumerate(everyone.points) if number % 4]
    assert found.points == tuple(whole_ones)
    expected = sum(ratio >= 0.1 and accuracy >= alpha for ratio, accuracy in whole_ones) / SAMPLES
    assert found.novel_quotient.share[MULTIPLES.index(0.1)] == expected > 0.5


def test_rows_are_those_of_the_generators_alone(known: Population) -> None:
    names = ("noise_small", "gaussian")
    found = judge(fit("soup", known), known, samples=SAMPLES, baselines=names, finetune=4, seed=3, threads=2)
    assert [(one.name, one.frame) for one in found.baselines] == [(n, f) for n in names for f in (None, "universe")]
    x, y = torch.from_numpy(known.data.test_x), torch.from_numpy(known.data.test_y)
    for one in (*found.baselines, found.samples):
        source = dataclasses.replace(known, frame=one.frame)
        weights = torch.from_numpy(fit(one.name, source).sample(SAMPLES, seed=3))
        truth = evaluate(known.architecture, weights, x, y)
        assert one.accuracy.mean == pytest.approx(truth.accuracy.mean())
        assert one.loss.median == pytest.approx(np.median(truth.loss))
    # of means of 16 out of 24 without replacement: variance (24 - 16) / (16 * 23) of a member's
    assert found.samples.rms == pytest.approx(math.sqrt(8 / (16 * 23)), rel=0.05)
    assert said(found, "collapses to the mean")
    curves = {one.name: one.accuracy for one in found.finetuned}
    assert set(curves) == {"samples", "nearest", "soup", "random"}
    np.testing.assert_array_equal(curves["samples"], curves["soup"])  # as they are the same networks
    assert curves["random"][0] < 0.3 < 0.8 < curves["random"][-1]
    assert found.verdicts == verdicts(found)
    again = judge(fit("soup", known), known, samples=SAMPLES, baselines=names, finetune=4, seed=3, threads=1)
    for one, other in zip(found.rows, again.rows, strict=True):
        assert dataclasses.replace(one, seconds=0.0) == dataclasses.replace(other, seconds=0.0)


def test_a_population_is_opened_from_the_source_and_another_is_refused(known: Population) -> None:
    mine = fit("mix", known)
    stages: list[str] = []
    opened = quick(mine, None, on_stage=stages.append)
    assert opened.samples.quotient == quick(mine, known).samples.quotient
    assert "draw 48 networks and evaluate them" in stages
    assert set(opened.seconds) >= {"compare", "baselines", "fine-tune"}
    other = population(known.zoo, frame="universe", held_out=0.2, seed=1)
    with pytest.raises(GeneratorError, match="judged against what it learned from"):
        quick(mine, other)


def test_bad_requests_are_refused_first(known: Population) -> None:
    mine = fit("mix", known)
    for changes, error, text in (
        ({"baselines": ("soap",)}, UnknownNameError, "did you mean 'soup'"),
        ({"samples": 1}, GeneratorError, "samples must be a whole number of 2 or more, got 1"),
        ({"finetune": -1}, GeneratorError, "finetune must be a whole number of 0 or more"),
        ({"device": "meta"}, InvalidSpecError, "judged on the CPU"),
        ({"frames": ("nowhere",)}, UnknownNameError, "has no frame 'nowhere'"),
        ({"conditions": {"width": 3}}, GeneratorError, "trained without conditions"),
    ):
        with pytest.raises(error, match=text):
            quick(mine, known, **changes)


def test_all_baselines_are_on_a_card_by_default(known: Population, tmp_path: Path) -> None:
    found = judge(fit("gaussian", known), samples=16, finetune=0, frames=[None])
    assert [one.name for one in found.baselines] == list(BASELINES)
    write_card(found, tmp_path)
    assert read_card(tmp_path).verdicts == found.verdicts
    assert found.cost.model_seconds > 0
