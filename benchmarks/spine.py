"""How fast the spine is: a population as one batch against a loop over networks, a zoo against one file a checkpoint.

Both sides alternate in one run and the ratio is of each pair; the machine may be busy. Faster paths are to be compared
with these rows. Bars, on all cores, are measured by the other modules.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

import catalog
from benchmarks.record import record
from benchmarks.sides import PAIRS, alternate, ratio
from weightspace.layout import Layout
from zoo.batches import Batches
from zoo.evaluate import evaluate
from zoo.plan import Plan, make_plan
from zoo.shards import groups
from zoo.spec import ZooSpec
from zoo.train import train

REPEATS = PAIRS


def _plan(models: int, batch: int, epochs: int = 1) -> Plan:
    return make_plan(
        ZooSpec(
            "bench",
            numbers={"depth": 2, "width": 32, "activation": "relu"},
            hyperparameters={"epochs": epochs, "batch_size": batch},
            seeds=tuple(range(models)),
        )
    )


def training(models: int = 64, batch: int = 32, epochs: int = 10) -> None:
    """MLPs 64-32-32-10 on digits: `zoo.train.train` both ways against the default PyTorch loop, one thread each.

    With initialisation, 64 models a call, as in a build; compiling comes before the first turn. The loop trains one
    network for one epoch.
    """
    plan = _plan(models, batch, epochs)
    (runs,) = plan.runs.values()
    x, y = torch.from_numpy(plan.data.train_x), torch.from_numpy(plan.data.train_y)

    def loop() -> None:
        run = runs[0]
        module = run.architecture.build()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        sizes, samples = np.array([batch]), np.array([run.samples])
        index = Batches(np.array([run.key], np.uint64), sizes, samples, batch).block(0, run.updates)[0][:, 0]
        for rows in torch.from_numpy(np.ascontiguousarray(index)):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()

    def both(impl: str) -> None:
        for group in groups(runs):
            train(group, plan.data, impl=impl)

    sides = {"reference": lambda: both("reference"), "compiled": lambda: both("compiled")}
    seconds = alternate({"loop": loop, **sides})
    steps = epochs * runs[0].updates * models
    for impl in sides:
        rate = round(steps / statistics.median(seconds[impl]))
        shown: dict[str, object] = {"ratio_to_loop": ratio(seconds, "loop", impl, 1, epochs * models)}
        shown["model_steps_per_second"] = rate
        if impl == "compiled":
            shown["ratio_to_reference"] = ratio(seconds, "reference", impl)
        setting = {"operation": "train mlp 64-32-32-10", "impl": impl, "models": models, "batch": batch}
        setting |= {"epochs": epochs, "threads": 1}
        record("spine", {**setting, **shown})


def evaluation(models: int = 64) -> None:
    """Evaluating MLPs on 597 samples against load_state_dict and forward, one network after the other."""
    plan = _plan(models, 32)
    (runs,) = plan.runs.values()
    architecture = runs[0].architecture
    weights = train([dataclasses.replace(run, epochs=0, checkpoints=(0,)) for run in runs], plan.data).weights[:, 0]
    x, y = torch.from_numpy(plan.data.test_x), torch.from_numpy(plan.data.test_y)
    module = architecture.build().eval()

    def loop() -> None:
        with torch.inference_mode():
            for one in weights:
                module.load_state_dict(architecture.layout.unflatten(one))
                logits = module(x)
                F.cross_entropy(logits, y)
                (logits.argmax(1) == y).float().mean()

    seconds = alternate({"loop": loop, "population": lambda: evaluate(architecture, weights, x, y)})
    shown = {"ratio_to_loop": ratio(seconds, "loop", "population")}
    record(
        "spine", {"operation": "evaluate mlp 64-32-32-10", "models": models, "samples": len(x), "threads": 1, **shown}
    )


def storage(models: int = 1000, checkpoints: int = 4, size: int = 3466, picks: int = 64) -> None:
    """Writing all models, and reading 64 at random, against one `.pt` file a checkpoint. Warm cache."""
    layout = Layout(("w",), ((size,),))
    random = np.random.default_rng(0)
    weights = random.normal(size=(models, checkpoints, size)).astype(np.float32)
    folder = Path(tempfile.mkdtemp())
    try:
        files, path = folder / "pt", folder / "bench.zoo"
        runs = [f"{number:016x}" for number in range(models)]

        def write_files() -> None:
            shutil.rmtree(files, ignore_errors=True)
            files.mkdir()
            for model in range(models):
                for checkpoint in range(checkpoints):
                    torch.save(
                        {"w": torch.from_numpy(weights[model, checkpoint].copy())}, files / f"{model}-{checkpoint}.pt"
                    )

        def write_zoo() -> None:
            shutil.rmtree(path, ignore_errors=True)
            made = catalog.create(path, name="bench", variants=[catalog.make_variant("v", layout, models, checkpoints)])
            for shard in range(made.record.variants["v"].grid.num_shards):
                inside = made.record.variants["v"].grid.models(shard)
                rows = pl.DataFrame(
                    {
                        "run": [runs[m] for m in inside for _ in range(checkpoints)],
                        "epoch": list(range(checkpoints)) * len(inside),
                        "status": "ok",
                        "reason": "",
                        "stored": True,
                    }
                )
                catalog.write_shard(made, "v", shard, weights[inside.start : inside.stop], rows, {})

        written = alternate({"files": write_files, "zoo": write_zoo}, 3)
        megabytes = weights.nbytes / 1e6 / statistics.median(written["zoo"])
        shown = {"ratio_to_files": ratio(written, "files", "zoo"), "megabytes_per_second": round(megabytes)}
        record("spine", {"operation": "write", "models": models, "checkpoints": checkpoints, "size": size, **shown})

        zoo = catalog.open(path)
        table = zoo.scan().filter(pl.col("epoch") == checkpoints - 1).collect()
        chosen = random.choice(models, picks, replace=False).tolist()

        def read_files() -> None:
            for model in chosen:
                torch.load(files / f"{model}-{checkpoints - 1}.pt", weights_only=True)["w"]

        read = alternate({"files": read_files, "zoo": lambda: zoo.read(table[chosen])})
        assert np.array_equal(zoo.read(table[chosen]), weights[chosen, -1])
        shown = {
            "ratio_to_files": ratio(read, "files", "zoo"),
            "milliseconds": round(statistics.median(read["zoo"]) * 1e3, 2),
        }
        record("spine", {"operation": "read random models", "picks": picks, "models": models, "size": size, **shown})
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """All of them."""
    torch.set_num_threads(1)
    for models, epochs in ((64, 10), (1024, 1)):
        for batch in (8, 32, 128):
            training(models, batch, epochs)
    evaluation()
    storage()


if __name__ == "__main__":
    main()
