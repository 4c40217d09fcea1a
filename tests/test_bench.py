"""The benchmarks' harness, what they compare, and the table that `weightscape bench` prints."""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import benchmarks.record
import weightscape
from benchmarks.__main__ import BENCHMARKS, run
from benchmarks.distributions import effect_size, independent, paired, verdict
from benchmarks.evaluation import evaluation
from benchmarks.populations import MODEL_ZOO, SMALL_CNN_ZOO, Population, mlp_flops, plain_module, train_loop
from benchmarks.record import bar, record
from benchmarks.sides import alternate, compare, cpu_seconds, measure, ratio
from benchmarks.team import Team
from kernels.population import forward

ROOT = Path(__file__).resolve().parent.parent
times = st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=9)


class Clock:
    """A clock that sides move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def sides(durations: dict[str, list[float]], clock: Clock, calls: list[str]) -> dict[str, Callable[[], object]]:
    """Sides that take these times, one after the other."""
    left = {name: list(values) for name, values in durations.items()}

    def side(name: str) -> Callable[[], object]:
        def work() -> None:
            calls.append(name)
            clock.now += left[name].pop(0)

        return work

    return {name: side(name) for name in durations}


def test_sides_take_turns_and_the_first_is_not_counted() -> None:
    clock, calls = Clock(), list[str]()
    work = sides({"a": [100, 1, 2, 3], "b": [100, 10, 20, 30], "c": [100, 4, 5, 6]}, clock, calls)
    turns = measure(work, 3, clock=clock, processor=lambda: 2 * clock.now)
    assert calls == [*"abc", *"abc", *"cba", *"abc"]
    assert turns["a"].wall == (1, 2, 3)
    assert turns["b"].wall == (10, 20, 30)
    assert turns["c"].cpu == (8, 10, 12)
    assert compare(turns, "b", "a") == {"median": 10, "low": 10, "high": 10, "pairs": 3, "cpu": 10}


def test_another_warm_up_replaces_the_uncounted_turn_of_its_side() -> None:
    clock, calls = Clock(), list[str]()
    work = sides({"a": [1, 2], "b": [100, 4, 5]}, clock, calls)
    turns = measure(work, 2, warm={"a": lambda: calls.append("short")}, clock=clock, processor=clock)
    assert calls == ["short", "b", "a", "b", "b", "a"]
    assert turns["a"].wall == (1, 2)


def test_alternate_gives_wall_seconds() -> None:
    calls: list[str] = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == [*"ab", *"ab", *"ba"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


@given(times, st.floats(0.5, 50), st.floats(0.5, 50))
def test_ratios_are_of_pairs_and_of_equal_work(pairs: list[tuple[float, float]], slow: float, fast: float) -> None:
    found = ratio({"s": [a for a, _ in pairs], "f": [b for _, b in pairs]}, "s", "f", slow, fast)
    expected = sorted(a / b * fast / slow for a, b in pairs)
    # rounded to two decimals, below 0.1 to four
    assert found["low"] == pytest.approx(expected[0], abs=0.0051)
    assert found["high"] == pytest.approx(expected[-1], abs=0.0051)
    assert found["median"] == pytest.approx(float(np.median(expected)), abs=0.0051)


def test_a_slowdown_of_both_sides_of_a_pair_changes_no_ratio() -> None:
    steady = ratio({"s": [4, 4, 4], "f": [2, 2, 2]}, "s", "f")
    assert ratio({"s": [4, 40, 4], "f": [2, 20, 2]}, "s", "f") == steady


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="living processes are counted on Linux only")
def test_processor_seconds_hold_those_of_children_living_and_dead() -> None:
    """A child that has used 0.3 s says so and lives on; what is asserted is its own count, not a time on the clock."""
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"
    before = cpu_seconds()
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        child.stdout.readline()
        alive = cpu_seconds() - before
        child.communicate()
    assert alive >= 0.28  # /proc counts in hundredths
    assert cpu_seconds() - before >= 0.3


def who() -> tuple[int, int, str | None]:
    return os.getpid(), torch.get_num_threads(), os.environ.get("MKL_CBWR")


def test_each_process_of_a_team_has_its_part() -> None:
    assert "MKL_CBWR" in os.environ, "importing zoo sets it"
    with Team(2, threads=3, plain=True) as team:
        turns = [team.each(who, [(), ()]) for _ in range(20)]  # quick enough for one process to do both, if it could
        with pytest.raises(ValueError, match="a team of 2 takes 2 parts, got 3"):
            team.each(who, [(), (), ()])
    assert all(first[0] != second[0] for first, second in turns)
    assert len({pid for turn in turns for pid, *_ in turn}) == 2
    assert {one[1:] for turn in turns for one in turn} == {(3, None)}


NETWORKS = [
    Population(3),
    Population(3, family="cnn", numbers=MODEL_ZOO, size=28),
    Population(3, family="cnn", numbers=SMALL_CNN_ZOO),
]


@pytest.mark.parametrize("population", NETWORKS, ids=lambda population: population.name)
def test_the_loop_trains_the_same_network(population: Population) -> None:
    """Same weights, same outputs: the plain module is ours without layers that do nothing."""
    architecture = population.architecture
    weights = torch.randn(1, architecture.layout.size, generator=torch.Generator().manual_seed(0)) * 0.3
    tensors = architecture.layout.unflatten(weights)
    x = torch.randn(5, *architecture.input_shape, generator=torch.Generator().manual_seed(1))
    plain = plain_module(architecture)
    plain.load_state_dict({name: tensor[0] for name, tensor in tensors.items()})
    assert not any("Dropout" in type(layer).__name__ for layer in plain)
    torch.testing.assert_close(plain(x), forward(architecture.build("meta"), tensors, x, shared=True)[0])


def test_steps_and_operations_are_those_of_the_network() -> None:
    population = Population(3, batch=128, epochs=2)
    assert population.name == "mlp 64-32-32-10"
    assert population.steps == 3 * 2 * (1200 // 128)
    assert train_loop(population, 1) == population.steps // 3
    entries = 64 * 32, 32 * 32, 32 * 10
    assert mlp_flops(population) == 128 * sum(6 * n for n in entries) - 128 * 2 * entries[0]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "results"
    monkeypatch.setattr(benchmarks.record, "RESULTS", folder)
    monkeypatch.setattr(weightscape, "RESULTS", folder)
    return folder


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(weightscape.app, ["bench", *arguments], env={"COLUMNS": "300"})


def rows() -> list[dict[str, Any]]:
    shown = bench("--json")
    assert shown.exit_code == 0, shown.output
    found: list[dict[str, Any]] = json.loads(shown.stdout)
    return found


ROW = {
    "operation": "train x",
    "setting": {"models": 4, "cores": 2},
    "ours": "9 steps/s",
    "against": "a loop",
    "theirs": "3 steps/s",
    "ratio": {"median": 3.0, "low": 2.5, "high": 3.5},
}


def test_what_is_recorded_is_shown(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record("one", {**ROW, **bar(3.0, 2.0)})
    record(
        "two", {**ROW, "operation": "build | more", "ratio": {"median": 0.5, "low": 0.4, "high": 0.6}, **bar(0.5, 6)}
    )
    record("two", {"results": [1, 2]})  # an experiment of another kind
    assert capsys.readouterr().out.count('"versions"') == 3
    first, second = rows()
    assert {name: first[name] for name in ROW} == ROW
    assert (first["bar"], first["met"], second["met"]) == (">= 2x", True, False)
    assert first["device"] == benchmarks.record.device()
    for flags in (["--summary"], ["--markdown"], ["--summary", "--markdown"]):
        shown = bench(*flags).stdout
        for text in ("train x (models 4, cores 2)", "a loop: 3 steps/s", "3x (2.5 to 3.5)", first["date"], "missed"):
            assert text in shown
    header, line, *body = bench("--markdown").stdout.splitlines()
    assert len(body) == 2
    assert [text.replace("\\|", "").count("|") for text in (header, line, *body)] == [7, 7, 7, 7]
    assert body[1].startswith("| build \\| more (")


def test_the_latest_row_of_a_setting_stays(results: Path) -> None:
    record("one", ROW)
    for change in ({"ours": "newer"}, {"setting": {"models": 8}}, {"against": "another"}):
        record("one", {**ROW, **change})
    found = rows()
    assert [(row["ours"], row["setting"].get("models"), row["against"]) for row in found] == [
        ("newer", 4, "a loop"),
        ("9 steps/s", 8, "a loop"),
        ("9 steps/s", 4, "another"),
    ]
    with (results / "two.jsonl").open("w") as file:  # a later file with an older row
        file.write(json.dumps({**ROW, "ours": "old", "date": "2020-01-01", "device": "x"}) + "\n\n")
    assert rows() == found


def test_rows_without_a_setting_show_what_they_hold(results: Path) -> None:
    """Those of the first benchmarks, and with ratios of wall and processor time."""
    first = {"operation": "write", "models": 9, "threads": 1, "megabytes_per_second": 60, "milliseconds": 2.5}
    record("one", {**first, "ratio_to_files": ROW["ratio"], "ratio_to_reference": ROW["ratio"]})
    wall = {"wall": ROW["ratio"], "cpu": {"median": 1.0, "low": 1.0, "high": 1.0}}
    record("one", {"operation": "read", "ratio_to_pt": wall, "megabytes_per_second": {"wall": 854, "cpu": 900}})
    record("one", {"operation": "count", "models": 3})
    found = rows()
    assert [row["against"] for row in found] == ["files", "reference", "pt", ""]
    assert all(row["setting"] == {"models": 9, "threads": 1} for row in found[:2])
    assert all(row["ratio"] == ROW["ratio"] for row in found[:3])
    assert [row["ours"] for row in found] == ["60 megabytes/s", "60 megabytes/s", "854 megabytes/s", ""]
    assert found[3]["ratio"] is None
    assert "count (models 3)" in bench("--summary").stdout


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "7",
        '"text"',
        b"\xff\xfe",
        "[" * 100_000,
        json.dumps(ROW),  # no date, no device
        json.dumps({**ROW, "date": "2026-01-01", "device": "x", "ratio": {"median": 1.0}}),
        json.dumps({**ROW, "date": "2026-01-01", "device": "x", "ratio": 3}),
        json.dumps({**ROW, "date": "2026-01-01", "device": "x", "setting": 3}),
        json.dumps({"operation": "x", "date": "2026-01-01", "device": "x", "ratio_to_pt": "fast"}),
    ],
    ids=lambda line: str(line)[:20],
)
def test_a_malformed_line_is_named(results: Path, line: str | bytes) -> None:
    record("one", ROW)
    with (results / "one.jsonl").open("ab") as file:
        file.write((line.encode() if isinstance(line, str) else line) + b"\n")
    shown = bench("--summary")
    assert shown.exit_code == 1
    assert f"{results / 'one.jsonl'}, line 2: not a result of `make bench`" in shown.stderr
    assert json.loads(bench("--json").stdout)["error"] == "FormatError"


def test_an_installed_package_says_that_it_has_no_results(results: Path) -> None:
    shown = bench("--summary")
    assert shown.exit_code == 1
    assert "an installed package has none" in shown.stderr
    assert json.loads(bench("--markdown", "--json").stdout)["error"] == "MissingDataError"


def test_without_a_flag_it_says_how_to_measure() -> None:
    shown = bench()
    assert shown.exit_code == 0
    assert "make bench" in shown.stdout


def test_the_results_of_this_checkout_can_be_shown() -> None:
    assert all(row["date"] for row in rows())


def test_the_runner_says_what_each_costs_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(command: list[str]) -> int:
        assert f"about {BENCHMARKS[command[-1].split('.')[1]].minutes:g} min" in capsys.readouterr().out
        started.append(command[-1])
        return int("evaluation" in command[-1])

    assert run(["training", "evaluation", "scaling"], start) == 1
    assert started == ["benchmarks.training", "benchmarks.evaluation", "benchmarks.scaling"]
    assert capsys.readouterr().err.strip() == "failed: evaluation"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else object())
    started.clear()
    assert run(["ray"], start) == 0
    assert started == []
    assert "left out, it needs ray" in capsys.readouterr().out
    assert sum(one.minutes for one in BENCHMARKS.values() if one.always) < 25


def test_the_runner_imports_nothing_heavy_and_knows_its_names() -> None:
    code = "import sys, benchmarks.__main__; print(*{'torch', 'ray', 'numba'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []
    command = [sys.executable, "-m", "benchmarks", "trainin"]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "unknown benchmark 'trainin'; known: training" in wrong.stderr


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_main_and_needs_no_ray_to_be_imported(name: str) -> None:
    module = f"benchmarks.{BENCHMARKS[name].module or name}"
    assert callable(importlib.import_module(module).main)
    assert "ray" not in sys.modules


def test_one_benchmark_runs(results: Path) -> None:
    assert evaluation(Population(20, epochs=1, test=40), pairs=1) == 0
    (row,) = rows()
    assert row["operation"] == "evaluate mlp 64-32-32-10"
    assert row["setting"] == {"models": 20, "samples": 40, "cores": 1}
    assert row["ours"].endswith("the same predictions")
    assert row["ratio"]["median"] > 0


def test_effect_size_is_the_shift_in_deviations() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0])
    effect, error = effect_size(a, a + 2 * a.std(ddof=1))
    assert effect == pytest.approx(2)
    assert error == pytest.approx(math.sqrt(2 / 4 + 4 / 16))


def test_two_samples_of_one_distribution_agree_and_a_shift_is_found() -> None:
    random = np.random.default_rng(0)
    a, b, shifted = (random.normal(shift, 1, 300) for shift in (0, 0, 0.4))
    same, other = independent(a, b), independent(a, shifted)
    assert min(same["ks_p"], same["means_p"]) > 0.05
    assert same["effect_low"] < 0 < same["effect_high"]
    assert max(other["ks_p"], other["means_p"]) < 0.001
    assert 0 < other["effect_low"] < 0.4 < other["effect_high"]
    wide = independent(a, 2 * b)  # equal means: only Kolmogorov-Smirnov sees it
    assert wide["ks_p"] < 0.001 < 0.05 < wide["means_p"]
    agree = {name: {"independent": same, "control": other} for name in ("accuracy", "loss")}
    blind = {name: {"independent": same, "control": same} for name in ("accuracy", "loss")}
    differ = {name: {"independent": other, "control": other} for name in ("accuracy", "loss")}
    assert [verdict(found)[1] for found in (agree, blind, differ)] == [True, False, False]


def test_pairs_show_a_small_bias() -> None:
    random = np.random.default_rng(0)
    a = random.normal(0, 1, 200)
    found = paired(a, a + random.normal(0.02, 0.05, 200))
    assert found["low"] < 0.02 < found["high"]
    assert 0 < found["low"]
    assert found["p"] < 0.001
    assert found["correlation"] > 0.99
    assert paired(a, a[::-1].copy())["p"] > 0.05


def test_nothing_is_said_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    measure({"a": lambda: time.sleep(0)}, 1)
    assert capsys.readouterr().err == ""
