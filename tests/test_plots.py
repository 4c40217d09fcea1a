"""Pictures that open, repeat byte for byte and leave matplotlib as it was; errors that name what is there."""

import functools
import io
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib.text import Text
from PIL import Image

from catalog.errors import InvalidSpecError, QueryError, StorageError, UnknownNameError
from zoo import plots
from zoo.plots import style
from zoo.plots.columns import last
from zoo.plots.maps import phase_map, phase_maps
from zoo.plots.planes import levels_of
from zoo.plots.scales import scale_of
from zoo.plots.style import save

T = np.linspace(0, 1, 11)
CURVES = 0.2 + np.outer((1, 2), T * (1 - T))
LONG = "a_name_of_a_metric_that_goes_on_and_on_over_more_than_one_line_of_a_picture"


def grid_rows(widths: int = 3, batches: int = 4, seeds: int = 2) -> pl.DataFrame:
    """Rows of a grid whose cold, wide half is phase IV-B; the first cell is missing where there are more."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(widths):
        for j in range(batches):
            if (i, j) == (0, 0) and widths * batches > 1:
                continue
            noise = generator.standard_normal(seeds)
            for seed in range(seeds):
                rows.append(
                    {
                        "run": f"{i}-{j}-{seed}",
                        "cell": f"{i}-{j}",
                        "epoch": 4,
                        "width": 2**i,
                        "batch_size": 4 * 2**j,
                        "load": 2**i,
                        "temperature": 4 * 2**j,
                        "phase": "IV-B" if 2 * i >= widths else "I",
                        "phase_outlier": i == j == 1,
                        "test_accuracy": 0.6 + 0.1 * i + 0.01 * noise[seed],
                        "trace": float(np.exp(6.0 - 4 * i + noise[seed])),
                        "mc": -3.0 + 2 * i + 0.1 * noise[seed],
                        "wild": float(np.sinh(3 * noise[seed] + i)),
                        LONG: 1.0,
                        "nothing": float("nan"),
                        "activation": "tanh",
                    }
                )
    return pl.DataFrame(rows)


ROWS = grid_rows()
DRAWN: dict[str, Callable[[], Any]] = {
    "map of phases": lambda: plots.draw("map", ROWS),
    "map of numbers": lambda: plots.draw("map", ROWS, ["test_accuracy"], title="digits"),
    "log map": lambda: phase_map(ROWS, "trace"),
    "signed log map": lambda: phase_map(ROWS, "wild"),
    "maps": lambda: plots.draw("map", ROWS, ["phase", "trace", "mc", LONG], title="digits"),
    "narrow maps": lambda: phase_maps(ROWS, ["mc", LONG], width="single"),
    "one cell": lambda: phase_map(grid_rows(1, 1), "mc"),
    "one cell of phases": lambda: phase_map(grid_rows(1, 1)),
    "many cells": lambda: phase_map(grid_rows(30, 30, 1)),
    "no phases": lambda: phase_map(ROWS.drop("phase", "phase_outlier"), "mc"),
    "long names": lambda: phase_map(
        ROWS.rename({"load": LONG + "x", "temperature": LONG + "y"}), "mc", LONG + "x", LONG + "y"
    ),
    "scatter with long names": lambda: plots.metric_scatter(
        ROWS.rename({"mc": LONG + "x"}), [LONG, "trace"], LONG + "x"
    ),
    "narrow scatter": lambda: plots.metric_scatter(
        ROWS.rename({"mc": LONG + "x"}), [LONG, "trace"], LONG + "x", width="single"
    ),
    "scatter": lambda: plots.draw("scatter", ROWS, ["trace", "mc", "wild", LONG], title="digits"),
    "scatter of runs": lambda: plots.draw("scatter", ROWS.drop("phase"), ["mc"], over="run", width="single"),
    "bare bezier": lambda: plots.draw("bezier", T, CURVES),
    "bezier": lambda: plots.draw("bezier", T, CURVES, CURVES + 1, names=["a", "b"], title="digits"),
    "many curves": lambda: plots.bezier(T, np.repeat(CURVES, 9, 0), width=5.0),
    "interpolation": lambda: plots.interpolation(T, CURVES, CURVES / 9, names=["a", "b"]),
    "steep interpolation": lambda: plots.interpolation(T, 10 ** (9 * T), T),
    "plane": lambda: plots.plane(T - 0.5, T - 0.5, np.exp(10 * np.add.outer(T, T)), title="digits"),
    "plane with holes": lambda: plots.plane(T, T, np.where(np.eye(11) == 1, np.inf, 1 + np.add.outer(T, T))),
    "flat plane": lambda: plots.plane(T, T, np.full((11, 11), 2.0)),
    "plane at zero": lambda: plots.plane(T, T, np.zeros((11, 11))),
    "spectrum": lambda: plots.draw("spectrum", T - 0.2, np.exp(-30 * np.array([T, 2 * T])), names=["I", "IV-B"]),
    "many spectra": lambda: plots.spectrum(T, np.tile(T, (9, 1))),
}


figure_of = functools.cache(lambda name: DRAWN[name]())


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_opens_and_leaves_matplotlib_as_it_was(name: str, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figure = figure_of(name)
    for suffix in style.FORMATS:
        save(figure, tmp_path / f"picture{suffix}")
    assert dict(matplotlib.rcParams) == before
    image = Image.open(tmp_path / "picture.png")
    image.load()
    assert image.size == tuple(int(inches * style.DPI) for inches in figure.get_size_inches())
    assert figure.get_figwidth() in (*style.WIDTHS.values(), 5.0)
    assert ET.parse(tmp_path / "picture.svg").getroot().tag.endswith("svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.png", "picture.svg"]


@pytest.mark.parametrize("name", DRAWN)
def test_letters_are_large_enough_and_do_not_overlap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, boxes = figure_of(name), {}
    draw = Text.draw

    def noted(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            boxes[text] = text.get_window_extent(renderer)
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", noted)
    with style.styled():
        figure.draw_without_rendering()
    assert boxes
    sizes = [text.get_fontsize() for text in boxes]
    assert min(float(size) for size in sizes) >= 7
    page, placed = figure.bbox, list(boxes.items())
    for place, (text, box) in enumerate(placed):
        out = min(box.x0 - page.x0, page.x1 - box.x1, box.y0 - page.y0, page.y1 - box.y1)
        assert out >= -1, text
        for other, second in placed[:place]:
            across = min(box.x1, second.x1) - max(box.x0, second.x0)
            along = min(box.y1, second.y1) - max(box.y0, second.y0)
            assert across <= 1 or along <= 1, (text, other)


@pytest.mark.parametrize("suffix", style.FORMATS)
@pytest.mark.parametrize("name", ["map of phases", "maps", "narrow scatter", "bezier", "plane", "spectrum"])
def test_saving_and_drawing_again_give_the_same_bytes(name: str, suffix: str, tmp_path: Path) -> None:
    figure = figure_of(name)
    first, second, third = (
        save(drawn, tmp_path / f"{place}{suffix}").read_bytes()
        for place, drawn in enumerate((figure, figure, DRAWN[name]()))
    )
    assert first == second == third
    assert b"dc:date" not in first


def test_threads_draw_the_same_picture() -> None:
    def drawn(_: int) -> bytes:
        with io.BytesIO() as file, style.styled():
            phase_map(ROWS, "mc").savefig(file, format="png", metadata={"Software": None})
            return file.getvalue()

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(drawn, range(4)))) == 1


def test_a_users_own_rules_change_nothing(tmp_path: Path) -> None:
    plain = save(phase_map(ROWS, "mc"), tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 50}):
        assert save(phase_map(ROWS, "mc"), tmp_path / "b.png").read_bytes() == plain
        assert matplotlib.rcParams["font.size"] == 20


def test_pyplot_is_never_loaded_and_matplotlib_only_to_draw() -> None:
    code = """
import sys, zoo.plots
assert 'matplotlib' not in sys.modules
zoo.plots.draw('bezier', [0, 1], [0, 1])
assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in DRAWN.values():
        with pytest.raises(InvalidSpecError, match=r"pip install weightscape\[plot\]"):
            draw()


def test_where_a_picture_cannot_be_written(tmp_path: Path) -> None:
    figure = phase_map(ROWS)
    for name in ("a.jpg", "a", ".png"):
        with pytest.raises(UnknownNameError, match=r"known: \.png, \.svg"):
            save(figure, tmp_path / name)
    with pytest.raises(StorageError, match="No such file"):
        save(figure, tmp_path / "missing" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(StorageError, match=r"cannot write the picture .*a\.png"):
        save(figure, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("draw", "error", "says"),
    [
        (lambda: plots.draw("pie", ROWS), UnknownNameError, "known: bezier, line, map, plane, scatter, spectrum"),
        (lambda: phase_map(ROWS, "tests_accuracy"), UnknownNameError, "test_accuracy.*did you mean"),
        (lambda: phase_map(ROWS.drop("phase")), UnknownNameError, "unknown column 'phase'; known: .*width"),
        (lambda: phase_map(ROWS, "mc", load="depth"), UnknownNameError, "unknown column 'depth'"),
        (lambda: phase_map(ROWS, "activation"), QueryError, "holds String.*columns of numbers: .*test_accuracy"),
        (lambda: phase_map(ROWS, "nothing"), QueryError, "no finite number in 22 rows; columns of numbers"),
        (lambda: phase_map(ROWS.clear()), QueryError, "no rows"),
        (lambda: phase_map(ROWS.clear(), "mc"), QueryError, "no rows"),
        (lambda: phase_map(ROWS.with_columns(phase=pl.lit(None, pl.String))), QueryError, "'phase' is empty"),
        (lambda: phase_map(ROWS, width=100), InvalidSpecError, "2 to 40 inches"),
        (lambda: phase_map(ROWS, width="wide"), UnknownNameError, "known: double, inches, single"),
        (lambda: phase_maps(ROWS, []), QueryError, "no columns"),
        (lambda: plots.metric_scatter(ROWS, []), QueryError, "no columns"),
        (lambda: plots.metric_scatter(ROWS.clear(), ["mc"]), QueryError, "no rows"),
        (lambda: plots.metric_scatter(ROWS, ["activation"]), QueryError, "holds String"),
        (lambda: plots.metric_scatter(ROWS, ["nothing"]), QueryError, "no finite number"),
        (lambda: plots.metric_scatter(ROWS, ["mc"], "loss"), UnknownNameError, "unknown column 'loss'"),
        (lambda: plots.metric_scatter(ROWS, ["mc"], over="zoo"), UnknownNameError, "known: cell, run"),
        (lambda: plots.bezier(T, CURVES[:, :4]), QueryError, r"\(pairs, 11\)"),
        (lambda: plots.bezier(T, CURVES * np.nan), QueryError, "no finite value"),
        (lambda: plots.bezier(T, CURVES, CURVES[:1]), QueryError, "the same pairs, got 2 and 1"),
        (lambda: plots.bezier(T, CURVES, names=["a"]), QueryError, "a name a pair, 2, got 1"),
        (lambda: plots.interpolation(T, CURVES, CURVES[0]), QueryError, "the same pairs, got 2 and 1"),
        (lambda: plots.plane(T, T, CURVES), QueryError, r"\(11, 11\), alphas by betas"),
        (lambda: plots.plane(T, T, np.full((11, 11), np.nan)), QueryError, "no finite value"),
        (lambda: plots.plane(T, T, np.full((11, 11), -1.0)), QueryError, "0 or more"),
        (lambda: plots.spectrum(T, CURVES[:, :4]), QueryError, "the same points"),
        (lambda: plots.spectrum(T, T * 0), QueryError, "no model has a finite density"),
        (lambda: plots.spectrum(T, T, names=["a", "b"]), QueryError, "a name a model, 1, got 2"),
    ],
)
def test_errors_name_what_is_there(draw: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        draw()


@pytest.mark.parametrize(
    ("values", "kind", "low", "high"),
    [
        ([0.2, 0.9], "linear", 0.2, 0.9),
        ([0.0, 1e6], "linear", 0.0, 1e6),  # zero has no place on a log scale
        ([1.0, 99.0], "linear", 1.0, 99.0),
        ([1.0, 101.0], "log", 1.0, 101.0),
        ([1.0, 1.5, 2.0, 50.0], "log", 1.0, 50.0),  # lopsided
        ([-20.0, 0.1, 4.5], "signed", -20.0, 20.0),
        ([-3.0, -2.0], "signed", -3.0, 3.0),
        ([-1.0, 2.0, 1e5], "signed log", -1e5, 1e5),
        ([np.nan, -np.inf, 1.0, 2.0], "linear", 1.0, 2.0),
        ([5.0], "linear", 4.5, 5.5),
        ([0.0], "linear", -0.1, 0.1),
    ],
)
def test_scales(values: list[float], kind: str, low: float, high: float) -> None:
    scale = scale_of(np.array(values))
    assert (scale.kind, scale.low, scale.high) == (kind, low, pytest.approx(high))
    norm = scale.norm()
    np.testing.assert_allclose(norm([scale.low, scale.high]), [0, 1], atol=1e-12)
    if kind.startswith("signed"):
        assert norm(0.0) == pytest.approx(0.5)
    assert ("log" in scale.note) == ("log" in kind)


def test_levels_have_equal_ratios_and_a_floor() -> None:
    levels = levels_of(np.array([1e-9, 2.0, np.inf, np.nan, 0.0]))
    np.testing.assert_allclose(levels[1:] / levels[:-1], (levels[1] / levels[0]) * np.ones(len(levels) - 1))
    assert (levels[0], levels[-1]) == (pytest.approx(2e-4), pytest.approx(2.0))


def test_the_last_row_of_a_run_that_has_the_value() -> None:
    rows = pl.DataFrame({"run": ["a", "a", "a", "b"], "epoch": [0, 1, 2, 1], "mc": [1.0, 2.0, None, 3.0]})
    assert last(rows, ["mc"])["mc"].to_list() == [2.0, 3.0]
    assert last(rows.drop("run"), ["mc"])["mc"].to_list() == [1.0, 2.0, 3.0]
