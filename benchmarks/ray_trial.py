"""What Ray Tune is given by `benchmarks.ray_tune`. A module of its own, so that a trial imports nothing of ours."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS, BATCH = 10, 32
PARTS = ("train_x", "train_y", "test_x", "test_y")


def trial(config: dict[str, Any]) -> None:
    """A trial, as it is usually written: a loop in PyTorch that reports and saves a checkpoint after every epoch."""
    begin = time.perf_counter()
    os.environ.pop("MKL_CBWR", None)  # which importing `zoo` sets, and nobody else would have
    import torch
    import torch.nn.functional as F
    from ray import tune
    from torch import nn

    torch.manual_seed(config["seed"])
    train_x, train_y, test_x, test_y = (torch.from_numpy(np.load(config["data"])[name]) for name in PARTS)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )  # fmt: skip
    optimizer = torch.optim.SGD(module.parameters(), lr=config["learning_rate"], momentum=0.9)
    for epoch in range(EPOCHS + 1):
        module.train()
        whole = len(train_x) // BATCH * BATCH
        for rows in torch.randperm(len(train_x))[:whole].split(BATCH) if epoch else ():
            optimizer.zero_grad()
            F.cross_entropy(module(train_x[rows]), train_y[rows]).backward()
            optimizer.step()
        module.eval()
        found = {}
        with torch.inference_mode():
            for part, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
                logits = module(x)
                found[f"{part}_loss"] = F.cross_entropy(logits, y).item()
                found[f"{part}_accuracy"] = (logits.argmax(1) == y).float().mean().item()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(module.state_dict(), os.path.join(folder, "weights.pt"))
            seconds = time.perf_counter() - begin
            tune.report({**found, "epoch": epoch, "seconds": seconds}, checkpoint=tune.Checkpoint(folder))


def tune_trials(count: int, data: str, folder: str) -> list[float]:
    """Run trials; seconds that each was at work in its own process, from the import of torch to its last report."""
    from ray import tune

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(range(count))), "data": data, "learning_rate": 0.05},
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    if results.errors or len(results) != count:
        raise RuntimeError(f"{len(results.errors)} of {count} trials failed: {results.errors[:1]}")
    saved = len(list(Path(folder).rglob("weights.pt")))
    if saved < count * (EPOCHS + 1):
        raise RuntimeError(f"{count} trials must leave {count * (EPOCHS + 1)} checkpoints, found {saved}")
    return [result.metrics["seconds"] for result in results if result.metrics]
