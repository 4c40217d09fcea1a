"""Small sources for the importers, as the published ones lie there, with the truth about what is in them.

Folders, names, columns and quirks follow ModelZooDataset, PhaseTransitionModelZoo, the Small CNN Zoo and the hub's
cache. `safetensors` and numpy need no torch; what writes pickles imports it.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from catalog.store import Zoo

Tensors = dict[str, np.ndarray]
Truth = dict[tuple[str, int], Tensors]  # (run, epoch) -> tensors by their names in the zoo
Save = Callable[[Path, Mapping[str, np.ndarray]], None]


def tensors(seed: int, hidden: int = 3) -> Tensors:
    """A small network with normalisation: floats, running statistics, a count."""
    random = np.random.default_rng(seed)
    return {
        "layer.weight": random.normal(size=(hidden, 4)).astype(np.float32),
        "layer.bias": random.normal(size=hidden).astype(np.float32),
        "norm.running_mean": random.normal(size=hidden).astype(np.float32),
        "norm.num_batches_tracked": np.array(seed % 1000, np.int64),
        "head.weight": random.normal(size=(2, hidden)).astype(np.float32),
    }


def save_safetensors(path: Path, content: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(content), path)


def save_pickle(path: Path, content: Mapping[str, Any], **extra: Any) -> None:
    """A state dict as torch saves it; with `extra` beside it, as trainers do."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for name, v in content.items()}
    torch.save({"state_dict": state, **extra} if extra else state, path)


def prefixed(content: Mapping[str, Any], prefix: str = "module.") -> dict[str, Any]:
    return {prefix + name: value for name, value in content.items()}


def trial_name(number: int, lr: float, seed: int) -> str:
    """As Ray names the folder of a trial: with commas and equals signs."""
    return f"NN_tune_trainable_541f4_{number:05d}_{number}_optim_lr={lr:.4f},seed={seed}_2024-08-19_07-33-29"


def record(number: int, epoch: int, seed: int, **more: Any) -> dict[str, Any]:
    """What Ray writes of an epoch."""
    return {
        "train_loss": 2.0 / (epoch + 1),
        "test_acc": 0.1 + 0.05 * epoch + 0.001 * number,
        "done": False,
        "trial_id": f"541f4_{number:05d}",
        "date": "2024-08-19_07-40-00",
        "timestamp": 1724053200,
        "time_total_s": 10.0 * epoch,
        "pid": 4242,
        "hostname": "node17",
        "node_ip": "10.0.0.17",
        "config": {"seed": seed},
        "training_iteration": epoch,
        **more,
    }


def ray_zoo(root: Path, *, first_line: int = 0, save: Save = save_pickle, state: str = "checkpoints") -> Truth:
    """Five trials with checkpoints at epochs 0, 1, 5, and everything that goes wrong in such zoos.

    Trial 0 is whole. 1 has `module.` prefixes. 2 lacks the checkpoint of epoch 1 and ends in half a line. 3 has the
    parameters of 0 again, and a checkpoint that is damaged at epoch 5. 4 has weights that are not finite at epoch 5.

    Args:
        first_line: epoch of the first line of `result.json`; 1 in zoos whose first checkpoint is before training.
    """
    truth: Truth = {}
    for number, seed in [(3, 1), (0, 1), (4, 5), (1, 2), (2, 3)]:  # no order in which they were made
        name = trial_name(number, 0.01, seed)
        folder = root / name
        folder.mkdir(parents=True)
        params = {"seed": seed, "optim::lr": 0.01, "model": {"width": 3}, "model::type": "mlp", "cuda": False}
        (folder / "params.json").write_text(json.dumps(params))
        lines = [json.dumps(record(number, epoch, seed)) for epoch in range(first_line, 7)]
        if number == 2:
            lines.append(lines[-1][: len(lines[-1]) // 2])
        (folder / "result.json").write_text("\n".join(lines) + ("" if number == 2 else "\n"))
        for epoch in (0, 1, 5):
            if (number, epoch) == (2, 1):
                continue
            content = tensors(100 * number + epoch)
            if (number, epoch) == (4, 5):
                content["layer.bias"][1] = np.nan
            path = folder / f"checkpoint_{epoch:06d}" / state
            save(path, prefixed(content) if number == 1 else content)
            (path.parent / "optimizer").write_bytes(b"not looked at")
            (path.parent / ".is_checkpoint").touch()
            if (number, epoch) == (3, 5):
                path.write_bytes(path.read_bytes()[:-40])
            elif (number, epoch) != (4, 5):
                truth[name, epoch] = content
    with (root / "summary.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["model", "epoch", "log_hessian_trace"])
        for number, seed in [(0, 1), (2, 3)]:  # the id has commas, so it is quoted
            table.writerows([trial_name(number, 0.01, seed), epoch, number + epoch / 8] for epoch in (0, 1, 5))
    (root / "experiment_state-2024.json").write_text("{}")
    return truth


CNN = [("conv2d", (3, 3, 1, 2), 2), ("conv2d_1", (3, 3, 2, 2), 2), ("dense", (2, 10), 10)]
STEPS = (0, 1, 2, 3, 20, 40, 60, 80, 86)


def small_cnn_zoo(root: Path, runs: int = 4, *, zipped: bool = True) -> Truth:
    """Matrix, metrics and layout of the Small CNN Zoo; rows in no order, one row lost, one with weights of NaN."""
    root.mkdir(parents=True, exist_ok=True)
    places, end = [], 0
    for layer, kernel, biases in CNN:
        for kind, shape in (("bias", (biases,)), ("kernel", kernel)):  # biases come first there
            size = int(np.prod(shape))
            places.append((f"sequential/{layer}/{kind}:0", end, end + size, size, str(shape)))
            end += size
    with (root / "layout.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([("varname", "start_idx", "end_idx", "size", "shape"), *places])
    random = np.random.default_rng(0)
    members = [(run, step) for run in range(runs) for step in STEPS if (run, step) != (1, 40)]
    members = [members[place] for place in random.permutation(len(members))]
    matrix = random.normal(size=(len(members), end)).astype(np.float32)
    matrix[members.index((2, 86)), 5] = np.nan
    np.save(root / "weights.npy", matrix)
    text = ["config.activation,config.learning_rate,config.dropout,config.epochs,modeldir,step,test_accuracy,laststep"]
    for run, step in members:
        directory = f"/cns/xy-d/zoo/mnist/{run:05d}/permanent_ckpt"
        text.append(f"{'relu' if run % 2 else 'tanh'},{0.001 * (run + 1)},0.0,86,{directory},{step},{step / 100},86")
    data = ("\n".join(text) + "\n").encode()
    (root / ("metrics.csv.gz" if zipped else "metrics.csv")).write_bytes(gzip.compress(data) if zipped else data)
    truth: Truth = {}
    for (run, step), row in zip(members, matrix, strict=True):
        if np.isfinite(row).all():
            directory = f"/cns/xy-d/zoo/mnist/{run:05d}/permanent_ckpt"
            truth[directory, step] = {
                name.removesuffix(":0"): row[start:stop].reshape(eval_shape(shape))
                for name, start, stop, _, shape in places
            }
    return truth


def eval_shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip("()").split(",") if part.strip())


def weights_folder(root: Path, *, save: Save = save_safetensors, suffix: str = ".safetensors", count: int = 5) -> Truth:
    """Files of weights with a table; ids have commas and quotes, and the table names a file that is not there."""
    truth: Truth = {}
    rows = []
    for number in range(count):
        name = f'models/net,lr=0.{number} "a"{suffix}'
        content = tensors(number)
        save(root / name, content)
        truth[name.removesuffix(suffix), 0] = content
        rows.append([name, number * 0.25, number, f"0{number}", number % 2 == 0, "" if number == 1 else "x,y"])
    rows.append([f"models/gone{suffix}", 0.5, 9, "09", True, "z"])
    with (root / "properties.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["path", "test accuracy", "2nd", "code", "augmented", "notes"], *rows])
    (root / "README.md").write_text("# nets")
    return truth


def labelled_folder(root: Path, *, save: Save = save_safetensors, suffix: str = ".safetensors") -> Truth:
    """Implicit networks: the label is in the name of the folder."""
    truth: Truth = {}
    for digit in (7, 2):
        for number in (1, 0):
            stem = f"mnist_{digit}/siren_{number}"
            content = tensors(10 * digit + number)
            save(root / f"{stem}{suffix}", content)
            truth[stem, 0] = content
    return truth


def write_shards(folder: Path, content: Tensors, config: Mapping[str, Any]) -> None:
    """A repository whose weights are in two files with an index."""
    names = sorted(content)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    where: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_safetensors(folder / file, {name: content[name] for name in half})
        where |= dict.fromkeys(half, file)
    index = {"metadata": {"total_size": sum(v.nbytes for v in content.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def repositories(root: Path) -> Truth:
    """Three of one architecture: one file; two files and an index; the cache of the hub, where files are links."""
    truth: Truth = {}
    config = {"model_type": "tiny", "hidden_size": 3, "id2label": {"0": "cat"}, "torch_dtype": "float32", "eps": 1e-5}
    for name, seed in (("alpha", 1), ("beta", 2)):
        content = tensors(seed)
        if name == "alpha":
            save_safetensors(root / name / "model.safetensors", content)
            (root / name / "config.json").write_text(json.dumps({**config, "seed": seed}))
        else:
            write_shards(root / name, content, {**config, "seed": seed})
        truth[name, 0] = content
    content = tensors(3)
    cached = root / "models--org--gamma"
    snapshot = cached / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    save_safetensors(cached / "blobs" / "f00d", content)
    (cached / "blobs" / "beef").write_text(json.dumps({**config, "seed": 3}))
    for name, blob in (("model.safetensors", "f00d"), ("config.json", "beef")):
        os.symlink(f"../../blobs/{blob}", snapshot / name)
    truth["org/gamma@abc123", 0] = content
    return truth


def check(zoo: Zoo, truth: Truth) -> pl.DataFrame:
    """Exactly these rows are stored, with exactly these tensors; returns all rows."""
    table = zoo.table()
    stored = table.filter(pl.col("stored"))
    assert set(stored.select("run", "epoch").iter_rows()) == set(truth)
    for row in stored.iter_rows(named=True):
        found, expected = zoo.state_dict(row), truth[row["run"], row["epoch"]]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
    return table
