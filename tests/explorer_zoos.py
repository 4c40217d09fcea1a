"""Zoos for the tests of the explorer: awkward columns, hostile names, a grid with phases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import catalog
from catalog.metrics import Measurement, version_of, write_measurement
from catalog.store import Zoo
from weightspace.layout import Layout

HOSTILE = (
    "<script>pwned = 1</script>",
    "</script><img src=x onerror='pwned = 1'>",
    '=HYPERLINK("x")',
    "$(touch pwned) `touch pwned`",
    'it\'s "quoted" \\ back',
    "abc\u202etxt.exe\u200b",
    "{{7*7}} %%data%% <!-- ${x}",
    "new\nline, comma",
)
ODD = "select </script> \"'\u202e\\]"  # the name of a column; the format allows any
LAYOUT = Layout(
    ("w</script>", "b", "mean", "empty"),
    ((2, 3), (2,), (2,), (0,)),
    ("float32",) * 4,
    ("parameter", "parameter", "buffer", "parameter"),
)
WIDTHS, RATES = (2, 4, 8), (0.1, 0.03162277660168379, 1e-7, 3e6)


def store(
    path: Path, rows: pl.DataFrame, layout: Layout = LAYOUT, seed: int = 0, name: str = "given", **options: Any
) -> Zoo:
    """A zoo of one shard a variant with these rows, sorted by variant, run and epoch; weights are normal."""
    epochs = rows["epoch"].n_unique()
    parts = {key[0]: part for key, part in rows.partition_by("variant", as_dict=True, maintain_order=True).items()}
    variants = [
        catalog.make_variant(str(variant), layout, models=len(part) // epochs, checkpoints=epochs)
        for variant, part in parts.items()
    ]
    zoo = catalog.create(path, name=name, variants=variants, **options)
    for variant in variants:
        part = parts[variant.name].drop("variant")
        shape = (len(part) // epochs, epochs, layout.size)
        weights = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        step = variant.grid.shard[0]
        for shard in range(variant.grid.num_shards):
            some = slice(shard * step, (shard + 1) * step)
            lines = part[some.start * epochs : min(some.stop, shape[0]) * epochs]
            catalog.write_shard(zoo, variant.name, shard, weights[some], lines, {"maker": "test"})
    catalog.rebuild_table(zoo)
    return zoo


def awkward(path: Path) -> Zoo:
    """Two variants of 12 runs on a grid, 3 checkpoints each, with columns of every kind; phases at the last one."""
    lines: list[Mapping[str, Any]] = []
    for variant in ("net", "other"):
        for place in range(12):
            for epoch in (0, 1, 10):
                count = len(lines)
                bad = place == 5 and epoch == 10
                lines.append(
                    {
                        "variant": variant,
                        "run": f"{variant}-{place:02d}-{HOSTILE[place % len(HOSTILE)]}",
                        "epoch": epoch,
                        "status": "diverged" if bad else "ok",
                        "reason": "loss is NaN <b>" if bad else "",
                        "stored": not bad,
                        "width": WIDTHS[place % 3],
                        "rate": RATES[place // 3],
                        "drawn": 0.001 * 1.7 ** (place + 12 * (variant == "other")),
                        "text": None if count % 9 == 0 else HOSTILE[count % len(HOSTILE)],
                        "order": -count if count % 4 else None,
                        "small": count % 7,
                        "single": 0.1 * count,
                        "large": 2**60 + count % 5,
                        "truth": None if count % 5 == 0 else count % 2 == 0,
                        "train_loss": math.nan if count % 11 == 0 else 2.0 / (1 + epoch) + 0.013 * count,
                        "test_accuracy": None if bad else round(0.1 + 0.07 * place + 0.002 * epoch, 3),
                        "far": math.inf if count == 3 else -math.inf if count == 4 else 1e300 * count,
                        "nothing": None,
                        ODD: count % 3,
                    }
                )
    dtypes = {"single": pl.Float32, "small": pl.UInt8, "large": pl.Int64, "nothing": pl.Float64}
    rows = pl.DataFrame(lines, schema_overrides=dtypes, infer_schema_length=None)
    info = {"licence": HOSTILE[0], "citation": "@misc{a,\n title={</script><b>}}", "data": {"<i>": HOSTILE[5]}}
    spec = {"axes": {"width": list(WIDTHS), "rate": list(RATES)}, "load": "width", "temperature": "rate"}
    zoo = store(path, rows, name=HOSTILE[0], info=info, spec=spec)
    ends = rows.filter(pl.col("epoch") == 10).select(
        "run",
        "epoch",
        pl.when(pl.col("rate") > 1).then(pl.lit("I")).when(pl.col("width") > 2).then(pl.lit("IV-B"))
        .otherwise(pl.lit("II")).alias("phase"),
        (pl.col("width").eq(4) & pl.col("rate").eq(0.1)).alias("phase_outlier"),
    )  # fmt: skip
    measured = Measurement("phase", version_of(1, {"rule": "hand"}), {"rule": "hand"}, True, ends, {"maker": "test"})
    write_measurement(zoo, measured)
    return zoo


def many(path: Path, models: int = 1000, epochs: int = 6, outcomes: int = 12) -> Zoo:
    """A zoo of the size that the page must bear: drawn settings, outcomes at every epoch."""
    generator = np.random.default_rng(0)
    count = models * epochs
    settings = {
        "width": np.repeat(generator.choice([2, 4, 8, 16, 32], models), epochs),
        "learning_rate": np.repeat(10 ** generator.uniform(-4, 0, models), epochs),
    }
    rows = pl.DataFrame(
        {
            "variant": ["net"] * count,
            "run": np.repeat([f"{number:016x}" for number in generator.integers(2**60, 2**62, models)], epochs),
            "epoch": np.tile(np.arange(epochs), models),
            "status": ["ok"] * count,
            "reason": [""] * count,
            "stored": [True] * count,
            **settings,
            **{f"metric_{number}_loss": generator.normal(size=count) for number in range(outcomes)},
        }
    )
    return store(path, rows, Layout(("a", "b"), ((4, 4), (4,))), name="many")
