"""Phases of cells: known labels with their borders, margins, agreement, outliers, and tables that lack something."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import InvalidSpecError, QueryError, SpecMismatchError
from zoo.cells import distances
from zoo.phases import PHASES, RULES, Rule, cell_means, label_rows, phases, read_rule, stability

RULE = RULES["yang"]
COLUMNS = ("train_loss", "mode_connectivity", "cka_yang")
# Values and the label they get; a value on a threshold is on the side of the better phase.
KNOWN: list[tuple[tuple[float | None, float | None, float | None], str | None]] = [
    ((0.5, -10.0, 0.4), "I"),
    ((0.5, 3.0, 0.9), "II"),
    ((0.5, -1.0, None), "II"),
    ((0.1, -1.5, 0.9), "III"),
    ((0.1, -1.0, 0.64), "IV-A"),
    ((0.1, -1.0, 0.65), "IV-B"),
    ((0.0, 0.0, 1.0), "IV-B"),
    ((math.nextafter(0.1, 1), math.nextafter(-1.0, -2), 0.0), "I"),
    ((math.nan, -5.0, 0.5), "diverged"),
    ((math.inf, None, None), "diverged"),
    ((None, -5.0, 0.5), None),
    ((0.5, None, 0.5), None),
    ((0.5, math.nan, 0.5), None),
    ((0.01, 0.0, None), None),
    ((0.01, 0.0, math.nan), None),
]
YANG = Path(os.environ.get("WEIGHTSCAPE_YANG", Path(__file__).parent.parent.parent / "shared/data/yang2021_grid.csv"))


def table(values: list[tuple[Any, ...]], **others: Any) -> pl.DataFrame:
    """One run a cell."""
    rows = pl.DataFrame(values, dict.fromkeys(COLUMNS, pl.Float64), orient="row", strict=False)
    return rows.with_columns(cell=pl.Series([f"{i:03}" for i in range(len(rows))], dtype=pl.String), **others)


def grid(**changed: tuple[int, int, float]) -> pl.DataFrame:
    """A smooth grid of 6 x 6, one run a cell. changed: column=(load, temperature, new value)."""
    rows = []
    for i in range(6):
        for j in range(6):
            row = {"load": 2**i, "temperature": 4 * 2**j, "train_loss": math.exp(1 - 1.2 * i + 0.1 * i * j)}
            row |= {"mode_connectivity": 0.5 * (1 - j) * (6 - i), "cka_yang": 0.4 + 0.06 * i - 0.02 * j}
            rows.append(row | {"test_accuracy": 0.6 + 0.06 * i - 0.01 * j + 0.002 * math.sin(5 * i + 3 * j)})
    for name, (i, j, value) in changed.items():
        rows[6 * i + j][name] = value
    return pl.DataFrame(rows)


def with_seeds(cells: pl.DataFrame, seeds: int, spread: float = 0.2, seed: int = 0) -> pl.DataFrame:
    """Each row several times, with noise."""
    rows = pl.concat([cells.with_columns(seed=pl.lit(i)) for i in range(seeds)])
    noise = np.random.default_rng(seed).normal(0, spread, (len(rows), len(COLUMNS)))
    return rows.with_columns((pl.col(name) * (1 + noise[:, i])).alias(name) for i, name in enumerate(COLUMNS))


def test_known_labels() -> None:
    found = phases(table([values for values, _ in KNOWN]), RULE)
    assert found["phase"].to_list() == [label for _, label in KNOWN]
    assert found.filter(pl.col("phase").is_null())["phase_reason"].to_list() == [
        "train_loss is missing",
        *["mode_connectivity is missing; measure it: `weightscape measure ZOO --metric mode_connectivity`"] * 2,
        *[
            "phase IV, but cka_yang, which tells IV-A from IV-B, is missing; "
            "measure it: `weightscape measure ZOO --metric cka_yang`"
        ]
        * 2,
    ]
    assert found["phase_seeds_agree"].drop_nulls().to_list() == [1.0] * (len(KNOWN) - 5)


def test_runs_are_labelled_by_their_own_values_too() -> None:
    rows = table([(0.5, -10, 0.4), (0.05, -10, 0.4), (0.5, 4, 0.4), (0.5, -10, 0.4)]).with_columns(cell=pl.lit("a"))
    found = label_rows(rows, RULE)
    assert found["phase"].to_list() == ["I"] * 4
    assert found["phase_of_run"].to_list() == ["I", "III", "II", "I"]
    assert found["phase_seeds_agree"].to_list() == [0.5] * 4
    assert label_rows(found, RULE).equals(found)  # replaces older labels


@pytest.mark.parametrize(
    ("values", "threshold", "margin"),
    [
        ((0.1, 5.0, 0.9), "loss", 0.0),
        ((0.3, -1.0, 0.9), "connectivity", 0.0),
        ((0.01, 0.0, 0.65), "similarity", 0.0),
        ((0.3, -2.5, 0.65), "connectivity", 1.5),  # the similarity did not decide
        ((0.3, -9.0, 0.65), "loss", 2.0),
        ((0.05, -9.0, 0.65), "loss", 0.5),
        ((0.001, 4.0, 0.78), "similarity", 0.2),
    ],
)
def test_margin_is_that_of_the_nearest_threshold_on_the_path(
    values: tuple[float, ...], threshold: str, margin: float
) -> None:
    found = phases(table([values]), RULE).row(0, named=True)
    assert found["phase_threshold"] == threshold
    assert found["phase_margin"] == (pytest.approx(margin) if margin else 0.0)


def test_a_border_is_not_moved_by_taking_means() -> None:
    rows = pl.concat([table([(0.1, -1.0, 0.65)])] * 3)  # (0.1 + 0.1 + 0.1) / 3 > 0.1
    found = phases(rows, RULE).row(0, named=True)
    assert (found["phase"], found["phase_margin"], found["phase_margin_se"]) == ("IV-B", 0.0, 0.0)


def test_margin_in_standard_errors() -> None:
    rows = table([(0.2, -4, 0.4), (0.3, -6, 0.4), (0.4, -8, 0.4)]).with_columns(cell=pl.lit("a"))
    found = phases(rows, RULE).row(0, named=True)
    assert found["train_loss_se"] == pytest.approx(0.1 / math.sqrt(3))
    assert found["phase_margin_se"] == pytest.approx(0.2 / (0.1 / math.sqrt(3)))  # connectivity is 5 / (2 / sqrt(3))
    assert phases(rows[:1], RULE)["phase_margin_se"].to_list() == [None]
    one_pair = rows.with_columns(mode_connectivity=pl.Series([-4.0, None, None]))
    assert phases(one_pair, RULE)["phase_margin_se"].to_list() == [None]  # connectivity decided too


def test_cell_means_as_numpy() -> None:
    values = [1.0, 4.0, math.nan, None, 2.5, math.inf]
    rows = pl.DataFrame({"cell": ["a"] * 6 + ["b"], "x": [*values, 3.0]}, strict=False)
    a, b = cell_means(rows, ["x"]).iter_rows(named=True)
    known = np.array([1.0, 4.0, 2.5])
    assert a["x"] == pytest.approx(known.mean())
    assert a["x_se"] == pytest.approx(known.std(ddof=1) / np.sqrt(3))
    assert (a["num_seeds"], a["x_seeds"], a["x_missing"]) == (6, 3, 3)
    assert (b["x"], b["x_se"], b["x_seeds"]) == (3.0, None, 1)


def test_most_runs_decide_whether_a_cell_diverged() -> None:
    rows = pl.concat([table([(0.5, -10, 0.4)] * 2)] * 3).with_columns(
        status=pl.Series(["diverged", "diverged", "diverged", "ok", "ok", "ok"])
    )
    found = phases(rows, RULE)
    assert found["phase"].to_list() == ["diverged", "I"]
    assert found["phase_reason"].to_list() == ["2 of 3 runs diverged", ""]
    assert found["phase_seeds_agree"].to_list() == pytest.approx([2 / 3, 2 / 3])
    assert found["train_loss_seeds"].to_list() == [1, 2]
    failed = rows.with_columns(status=pl.lit("failed"))
    assert phases(failed, RULE)["phase"].to_list() == [None, None]


def test_near_chance_is_diverged_where_chance_is_known() -> None:
    rows = table([(2.3, -10, 0.4)] * 4, train_accuracy=pl.Series([0.5, 0.7499, 0.75, None]))
    found = phases(rows, Rule("two classes", chance=0.5, tau_chance=0.5))
    assert found["phase"].to_list() == ["diverged", "diverged", "I", None]
    assert found["phase_reason"].to_list()[::3] == ["train_accuracy is near chance", found["phase_reason"][3]]
    assert "train_accuracy is missing" in found["phase_reason"][3]
    assert found["phase_threshold"].to_list() == ["accuracy", "accuracy", "accuracy", None]
    assert found["phase_margin"][2] == 0
    assert set(phases(rows, RULE)["phase"]) == {"I"}


def test_other_losses_get_no_label() -> None:
    found = phases(table([(0.05, -10, 0.4)] * 2, loss_function=pl.Series(["mse", "cross_entropy"])), RULE)
    assert found["phase"].to_list() == [None, "III"]
    assert "not of cross-entropy" in found["phase_reason"][0]


def test_median_splits_phase_four_of_each_checkpoint_alone() -> None:
    early = table([(0.01, 0, k) for k in (0.1, 0.2, 0.3)], epoch=pl.lit(1))
    late = table([(0.01, 0, 0.7), (0.01, 0, 0.8), (0.01, 0, 0.9)], epoch=pl.lit(2))
    labels = phases(pl.concat([late, early]), RULES["median"]).sort("epoch", "cell")
    assert labels["phase"].to_list() == ["IV-A", "IV-B", "IV-B"] * 2
    assert labels["phase_tau_similarity"].unique().sort().to_list() == [0.2, 0.8]
    none = phases(table([(0.5, 0, 0.1)]), RULES["median"])  # no cell of phase IV
    assert (none["phase"].item(), none["phase_tau_similarity"].item()) == ("II", None)


def test_checkpoints_are_cells_of_their_own() -> None:
    rows = pl.concat(
        [table([(0.5, -10, 0.4), (0.5, 3, 0.4)], epoch=pl.lit(1)), table([(0.01, 0, 0.9)] * 2, epoch=pl.lit(7))]
    )
    found = phases(rows, RULE).sort("epoch", "cell")
    assert found["phase"].to_list() == ["I", "II", "IV-B", "IV-B"]


def test_load_and_temperature_make_a_cell_where_no_column_does() -> None:
    rows = grid()
    assert len(phases(pl.concat([rows, rows]), RULE)) == len(rows)
    with pytest.raises(QueryError, match="no column 'load', 'temperature'"):
        phases(table([(0.5, -10, 0.4)]).drop("cell"), RULE)


@pytest.mark.parametrize("name", ["train_loss", "mode_connectivity"])
def test_what_to_measure_first(name: str) -> None:
    with pytest.raises(QueryError, match="weightscape build" if name == "train_loss" else f"--metric {name}"):
        phases(grid().drop(name), RULE)


def test_all_that_is_missing_is_named() -> None:
    with pytest.raises(QueryError, match=r"--metric mode_connectivity`; .*train_accuracy is written by"):
        phases(grid().drop("mode_connectivity"), Rule("r", chance=0.1))


def test_without_similarity_only_phase_four_is_unknown() -> None:
    rows = grid()
    full, less = phases(rows, RULE), phases(rows.drop("cka_yang"), RULE)
    four = full["phase"].is_in(["IV-A", "IV-B"])
    assert less["phase"].is_null().equals(four)
    assert less.filter(~four)["phase"].equals(full.filter(~four)["phase"])


@pytest.mark.parametrize("bad", [pl.lit("high"), pl.lit(b"1"), pl.lit([1.0])])
def test_columns_that_hold_no_numbers(bad: pl.Expr) -> None:
    with pytest.raises(QueryError, match="'train_loss' must hold numbers"):
        phases(grid().with_columns(train_loss=bad), RULE)


def test_no_rows() -> None:
    assert len(phases(grid()[:0], RULE)) == len(label_rows(grid()[:0], RULES["median"])) == 0


def test_smooth_grid_has_no_outliers_and_all_are_judged() -> None:
    found = phases(grid(), RULE)
    assert found["phase_outlier"].to_list() == [False] * 36
    assert set(found["phase"]) == {"I", "II", "III", "IV-A", "IV-B"}


PLANTED = {"mode_connectivity": -100.0, "cka_yang": 0.05, "test_accuracy": 0.2}


@pytest.mark.parametrize(("column", "value"), [("train_loss", 40.0), ("train_loss", 0.0), *PLANTED.items()])
@pytest.mark.parametrize("at", [(2, 3), (0, 0), (5, 2)])
def test_a_planted_outlier_is_found_alone(column: str, value: float, at: tuple[int, int]) -> None:
    found = phases(grid(**{column: (*at, value)}), RULE).filter(pl.col("phase_outlier"))
    assert found.select("load", "temperature").rows() == [(2 ** at[0], 4 * 2 ** at[1])]
    assert found["phase_outlier_column"].to_list() == [column]


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_a_trend_has_no_outliers(up: float, along: float) -> None:
    rows = grid().with_columns(value=up * pl.col("load").log(2) + along * pl.col("temperature").log(2))
    assert np.abs(distances(rows, rows["value"].to_numpy())).max() < 1e-6  # rounding


def test_no_grid_no_outliers() -> None:
    rows = grid(train_loss=(2, 3, 40.0))
    one_line = rows.filter(pl.col("load") == 4)  # two neighbours at most
    scattered = rows.with_columns(load=pl.int_range(pl.len()), temperature=pl.int_range(pl.len()) * 7 % 37)
    names = rows.with_columns(pl.col("load").cast(pl.String))
    twice = pl.concat([rows, rows]).with_columns(cell=pl.int_range(pl.len()))  # of two slices
    for table_ in (one_line, scattered, names, twice, rows.with_columns(load=None)):
        assert phases(table_, RULE)["phase_outlier"].null_count() == len(phases(table_, RULE))


def test_equal_cells_are_no_outliers_and_one_other_is() -> None:
    flat = grid().with_columns(pl.lit(0.5).alias(name) for name in (*COLUMNS, "test_accuracy"))
    assert not phases(flat, RULE)["phase_outlier"].any()
    other = flat.with_columns(cka_yang=pl.when(pl.int_range(pl.len()) == 14).then(0.9).otherwise(0.5))
    assert phases(other, RULE)["phase_outlier"].arg_true().to_list() == [14]


values = st.one_of(st.none(), st.sampled_from([0.1, -1.0, 0.65, math.nan, math.inf]), st.floats(-50, 50, width=32))
rows_of_runs = st.lists(st.tuples(values, values, values, st.integers(0, 3), st.integers(0, 2)), max_size=25)


def runs(drawn: list[tuple[Any, ...]]) -> pl.DataFrame:
    schema = {**dict.fromkeys(COLUMNS, pl.Float64), "load": pl.Int64, "temperature": pl.Int64}
    return pl.DataFrame(drawn, schema, orient="row", strict=False)


@settings(max_examples=40)  # 30 ms each
@given(rows_of_runs, st.randoms(use_true_random=False), st.sampled_from(["yang", "median"]))
def test_any_table_is_labelled_whatever_its_order(drawn: list[tuple[Any, ...]], random: Any, name: str) -> None:
    rows = runs(drawn).with_row_index("at")
    shuffled = rows[random.sample(range(len(rows)), len(rows))]
    found = phases(rows, RULES[name])
    assert found.equals(phases(shuffled, RULES[name]))
    assert set(found["phase"]) <= {*PHASES, None}
    assert found["phase"].is_null().equals(found["phase_reason"].str.contains("missing"))
    assert (found["phase_margin"].drop_nulls() >= 0).all()
    labelled = label_rows(shuffled, RULES[name])
    assert labelled["at"].equals(shuffled["at"])
    assert labelled.sort("at").equals(label_rows(rows, RULES[name]))
    alone = found.filter(pl.col("num_seeds") == 1, pl.col("phase").is_not_null())
    assert (alone["phase_seeds_agree"] == 1).all()


@settings(max_examples=40)  # 30 ms each
@given(rows_of_runs, st.floats(1, 20))
def test_raising_a_threshold_moves_cells_one_way(drawn: list[tuple[Any, ...]], factor: float) -> None:
    rows = runs(drawn)
    before = phases(rows, RULE)["phase"]

    def after(**changed: float) -> pl.Series:
        return phases(rows, Rule("raised", **changed))["phase"]  # type: ignore[arg-type]  # thresholds are numbers

    for changed, left in (
        ({"tau_loss": 0.1 * factor}, ["I", "II"]),
        ({"tau_connectivity": factor}, ["I", "III"]),
        ({"tau_similarity": 0.65 * factor}, ["IV-B"]),
    ):
        inside = after(**changed).is_in(left).fill_null(False)
        assert not (inside & ~before.is_in(left).fill_null(False)).any()


def test_stability_counts_every_cell_for_every_combination() -> None:
    rows = with_seeds(grid(), 3)
    found = stability(rows, RULE)
    assert len(found) == 27
    assert (found.select(pl.sum_horizontal(*PHASES, "unlabelled")).to_series() == 36).all()
    as_is = found.filter(tau_loss=0.1, tau_connectivity=1.0, tau_similarity=0.65).row(0, named=True)
    labels = phases(rows, RULE)["phase"]
    assert {phase: as_is[phase] for phase in PHASES} == {phase: int((labels == phase).sum()) for phase in PHASES}
    assert len(stability(rows, RULES["median"])) == 9
    with pytest.raises(InvalidSpecError, match="factors are of"):
        stability(rows, RULE, {"chance": (1.0,)})


@pytest.mark.parametrize("rule", [*RULES.values(), Rule("mine", tau_loss=1, chance=0.1, loss="eval_loss")])
def test_settings_make_the_rule_again(rule: Rule) -> None:
    settings = json.loads(json.dumps(rule.settings()))
    assert read_rule(settings) == rule
    with pytest.raises(SpecMismatchError, match="label the cells again"):
        read_rule({**settings, "version": rule.version + 1})
    with pytest.raises(InvalidSpecError, match="settings of a phase rule"):
        read_rule({**settings, "trace": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {name: bad}
            for name in ("tau_loss", "tau_connectivity", "outlier")
            for bad in (0, -1.0, math.nan, True, "1")
        ),
        *({"tau_similarity": "mean"}, {"chance": 1.0}, {"chance": 0}),
    ],
)
def test_rules_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpecError, match="of a phase rule must be"):
        Rule("wrong", **wrong)


@pytest.mark.skipif(not YANG.exists(), reason="the published grid is not beside the checkout")
def test_the_published_grid() -> None:
    rows = pl.read_csv(YANG).rename(
        {
            "width": "load",
            "bs": "temperature",
            "mc": "mode_connectivity",
            "cka": "cka_yang",
            "test_acc": "test_accuracy",
        }
    )
    found = phases(rows, RULE).join(rows.select("load", "temperature", "log_trace"), on=["load", "temperature"])
    means = found.group_by("phase").agg(pl.len(), pl.mean("test_accuracy", "log_trace", "cka_yang")).sort("phase")
    assert means["len"].to_list() == [39, 16, 37, 32, 45]
    assert means["test_accuracy"].round(1).to_list() == [73.6, 79.9, 80.5, 84.1, 87.5]
    assert means["log_trace"].round(2).to_list() == [7.27, 6.24, 5.41, 5.27, 3.87]
    assert means["cka_yang"].round(2).to_list() == [0.47, 0.54, 0.50, 0.59, 0.72]
    assert not found["phase_outlier"].any()
    assert found["phase_outlier_score"].to_numpy().max() == pytest.approx(1.5, abs=0.05)  # as `Rule.outlier` says
