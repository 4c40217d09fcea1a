"""The charts of the page as Vega-Lite, built with Altair, and the library that draws them.

What they show comes later: data sets by name, parameters by name, and texts that begin with @ are filled in by `map.js`
and `model.js`. No name or text of a zoo is ever part of an expression.
"""

from __future__ import annotations

import functools
from typing import Any

from catalog.errors import InvalidSpecError

Specs = dict[str, Any]
FIT = {"type": "fit", "contains": "padding"}


@functools.cache
def charts() -> tuple[Specs, str]:
    """Chart by name, and the JavaScript of Vega, Vega-Lite and Vega-Embed (900 kB; a second to make).

    Raises:
        InvalidSpecError: Altair or vl-convert is not installed.
    """
    try:
        import altair as alt
        import vl_convert
    except ModuleNotFoundError as error:
        raise InvalidSpecError("the explorer needs Altair and vl-convert: pip install weightscape[explore]") from error
    maps = {f"map_{kind}": _map(alt, kind) for kind in ("linear", "log", "signed", "named")}
    found = {**maps, "curve": _curve(alt), "histogram": _histogram(alt)}
    specs = {name: chart.to_dict() for name, chart in found.items()}
    return specs, str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _map(alt: Any, kind: str) -> Any:
    """Cells of a grid coloured by a value, borders between phases, names of phases, marks of outliers.

    Cell (i, j) covers i to i+1 and j to j+1. The axes have their own labels: `x_labels` and `y_labels`, one a cell.
    """
    lists = {name: alt.param(name=name, value=[]) for name in ("x_labels", "y_labels", "x_ticks", "y_ticks")}
    sides = {name: alt.param(name=name, value=1) for name in ("columns", "lines", "low", "high")}

    def axis(letter: str, size: str) -> dict[str, Any]:
        labels = alt.Axis(
            title=f"@{letter}",
            values=alt.ExprRef(f"{letter}_ticks"),
            labelExpr=f"{letter}_labels[floor(datum.value)]",
            labelOverlap="greedy",
            grid=False,
            domain=False,
            ticks=False,
        )
        return {"axis": labels, "scale": alt.Scale(domainMin=0, domainMax=alt.ExprRef(size), nice=False, zero=False)}

    x = alt.X("x:Q", **axis("x", "columns"))
    y = alt.Y("y:Q", **axis("y", "lines"))
    legend = alt.Legend(title="@value", gradientLength=alt.ExprRef("height"), titleLimit=160, tickCount=5, offset=14)
    colours = {
        "linear": alt.Color("value:Q", scale=alt.Scale(scheme="viridis", nice=False, zero=False), legend=legend),
        "log": alt.Color("value:Q", scale=alt.Scale(type="log", scheme="viridis", nice=False), legend=legend),
        "signed": alt.Color(
            "value:Q",
            scale=alt.Scale(
                scheme="redblue", reverse=True, domainMin=alt.ExprRef("low"), domainMax=alt.ExprRef("high")
            ),
            legend=legend,
        ),
        "named": alt.Color("colour:N", scale=None, legend=None),
    }
    edges = {"x2": "x2:Q", "y2": "y2:Q"}
    cells = alt.Chart(alt.NamedData("cells")).mark_rect(cursor="pointer", stroke="@paper", strokeWidth=1)
    cells = cells.encode(x=x, y=y, **edges, color=colours[kind], description="says:N")
    over = alt.Chart(alt.NamedData("borders")).encode(x="x:Q", y="y:Q", **edges)
    names = alt.Chart(alt.NamedData("names")).encode(x="x:Q", y="y:Q", text="text:N")
    chosen = alt.Chart(alt.NamedData("chosen")).encode(x="x:Q", y="y:Q", **edges)
    layers = [
        cells,
        over.mark_rule(color="white", strokeWidth=4, strokeCap="round", opacity=0.9),
        over.mark_rule(color="black", strokeWidth=2, strokeCap="round"),
        names.mark_text(fontWeight="bold", fontSize=15, stroke="white", strokeWidth=4, strokeJoin="round", opacity=0.9),
        names.mark_text(fontWeight="bold", fontSize=15, color="black"),
        chosen.mark_rect(fillOpacity=0, stroke="@accent", strokeWidth=4),
    ]
    chart = alt.layer(*layers).add_params(*lists.values(), *sides.values())
    return chart.properties(width="container", autosize=FIT)


def _curve(alt: Any) -> Any:
    """One or several metrics of a run over its epochs."""
    base = alt.Chart(alt.NamedData("points")).encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, grid=False)),
        y=alt.Y("value:Q", title="@title", scale=alt.Scale(zero=False)),
        color=alt.Color(
            "series:N",
            scale=alt.Scale(range=["@accent", "@second", "@third"]),
            legend=alt.Legend(title=None, orient="top"),
        ),
        description="says:N",
    )
    return alt.layer(base.mark_line(strokeWidth=2), base.mark_point(filled=True, size=45, opacity=1)).properties(
        width="container", height=170, autosize=FIT
    )


def _histogram(alt: Any) -> Any:
    """How many parameters have which value."""
    return (
        alt.Chart(alt.NamedData("bins"))
        .mark_rect(color="@accent", stroke="@paper", strokeWidth=0.5)
        .encode(
            x=alt.X("low:Q", title="weight", axis=alt.Axis(grid=False), scale=alt.Scale(zero=False, nice=False)),
            x2="high:Q",
            y=alt.Y("count:Q", title="parameters"),
            y2=alt.datum(0),
            description="says:N",
        )
        .properties(width="container", height=200, autosize=FIT)
    )
