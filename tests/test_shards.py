"""What a shard's rows say, checked against the weights that readers get."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

import catalog
from catalog.store import Zoo
from zoo.evaluate import evaluate
from zoo.plan import Plan, make_plan
from zoo.shards import build_shard, one_thread
from zoo.spec import ZooSpec
from zoo.train import noisy_labels


def built(spec: ZooSpec, folder: Path) -> tuple[Zoo, Plan]:
    plan = make_plan(spec)
    zoo = catalog.create(folder, name=spec.name, variants=plan.variants.values(), spec=spec.to_json(), info=plan.info)
    for task in zoo.record.shards:
        build_shard(zoo, plan, *task)
    return zoo, plan


SPEC = ZooSpec(
    "shards",
    numbers={"width": 3},
    dataset="moons",
    hyperparameters={"epochs": 2, "data_fraction": 0.2, "momentum": 0.0},
    axes={"label_noise": (0.0, 0.4), "batch_size": (16, 32)},
    checkpoints=(0, 2),
    train_samples=100,
)


def test_metrics_are_those_of_the_stored_weights(tmp_path: Path) -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        zoo, plan = built(dataclasses.replace(SPEC, dtype=dtype), tmp_path / dtype)
        rows = zoo.scan().collect()
        assert rows["status"].to_list() == ["ok"] * 8
        weights = torch.from_numpy(np.asarray(zoo.read(rows), np.float32))
        runs = {run.run: run for runs in plan.runs.values() for run in runs}
        architecture, data = next(iter(runs.values())).architecture, plan.data
        test = evaluate(architecture, weights, *map(torch.from_numpy, (data.test_x, data.test_y)))
        np.testing.assert_allclose(rows["test_loss"], test.loss, rtol=1e-5)
        np.testing.assert_array_equal(rows["test_accuracy"], test.accuracy)
        assert rows["test_error_bits"].to_list() == [bits.tobytes() for bits in test.error_bits]
        labels = noisy_labels([runs[run] for run in rows["run"]], data.train_y, 2)[:, :100]
        train = evaluate(architecture, weights, torch.from_numpy(data.train_x[:100]), torch.from_numpy(labels))
        np.testing.assert_allclose(rows["train_loss"], train.loss, rtol=1e-5)


def test_weights_too_large_for_float16_are_a_divergence(tmp_path: Path) -> None:
    hyper = {"optimizer": "adamw", "epochs": 2, "data_fraction": 0.4, "weight_decay": 1.0}  # 18 steps of -2 = 1 - 3 * 1
    axes = {"learning_rate": (1e-3, 3.0)}
    zoo, _ = built(dataclasses.replace(SPEC, hyperparameters=hyper, axes=axes, dtype="float16"), tmp_path / "zoo")
    rows = zoo.scan(status=None).collect()
    bad = rows.filter(learning_rate=3.0)
    assert set(bad["status"]) == {"diverged"}
    assert set(bad["reason"]) == {"weights at epoch 2 are not finite as float16"}
    assert bad["stored"].to_list() == [True, False]  # the early checkpoint is kept
    assert bad["test_loss"].is_null().to_list() == bad["train_error_bits"].is_null().to_list() == [False, True]
    assert np.isfinite(zoo.read(bad.filter(epoch=0))).all()
    assert set(rows.filter(learning_rate=1e-3)["status"]) == {"ok"}


def test_one_thread_is_given_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
