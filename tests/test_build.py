"""Building a zoo: executors, interruption, faults. Real processes, really killed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

import catalog
import zoo.local
from catalog.errors import BuildError, InvalidSpecError, SpecMismatchError, StorageError
from tests.processes import children, command, gone, wait_until
from zoo.architectures import Architecture
from zoo.build import build, preview, resume
from zoo.plan import make_plan
from zoo.presets import tiny
from zoo.progress import BuildProgress
from zoo.spec import ZooSpec

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A `tiny` zoo built without interruption in this process, and its digest."""
    path = tmp_path_factory.mktemp("whole") / "tiny.zoo"
    build(tiny(), path, workers=0)
    found = catalog.verify(path)
    assert found.ok, found.problems
    return path, found.digest


@pytest.fixture(scope="module")
def busy_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the zoo of `busy_spec`, built without interruption."""
    path = tmp_path_factory.mktemp("whole") / "busy.zoo"
    build(busy_spec(), path, workers=0)
    return catalog.verify(path).digest


def busy_spec(name: str = "busy") -> ZooSpec:
    """Eight shards that take half a second or so each: time enough to be interrupted."""
    return dataclasses.replace(
        tiny(),
        name=name,
        hyperparameters={"epochs": 600, "learning_rate": 0.1},
        axes={"width": (2, 3, 4, 5, 6, 7, 8, 9), "batch_size": (8, 32)},
        checkpoints=(0, 600),
    )


def write_spec(spec: ZooSpec, path: Path) -> Path:
    import json

    path.write_text(json.dumps(spec.to_json()))
    return path


def test_rows_and_weights_fit_together(whole: tuple[Path, str]) -> None:
    models = catalog.open(whole[0])
    table = models.scan().collect()
    assert len(table) == 24 * 3
    for variant in table["variant"].unique():
        rows = table.filter(pl.col("variant") == variant)
        weights = models.read(rows, torch=True)
        architecture = Architecture.from_json(models.record.variants[variant].architecture)
        module = architecture.build()
        from zoo.datasets import load_dataset

        data = load_dataset("moons")
        for number in (0, len(rows) - 1):
            module.load_state_dict(models.state_dict(rows[number], torch=True))
            wrong = (module(torch.from_numpy(data.test_x)).argmax(1).numpy() != data.test_y).astype(np.uint8)
            assert rows["test_accuracy"][number] == pytest.approx(1 - wrong.mean())
            assert rows["test_error_bits"][number] == np.packbits(wrong).tobytes()
            torch.testing.assert_close(architecture.layout.flatten(module.state_dict()), weights[number])
    late = table.filter(pl.col("progress") == 1.0)
    early = table.filter(pl.col("epoch") == 0)
    assert late["test_accuracy"].to_numpy().mean() > early["test_accuracy"].to_numpy().mean() + 0.2


def test_processes_give_the_bytes_of_one_process(whole: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "mit Ümläut und Platz.zoo"
    build(tiny(), path, workers=2)
    assert catalog.verify(path).digest == whole[1]


def test_environment_changes_nothing(whole: tuple[Path, str], tmp_path: Path) -> None:
    other = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    process = command("build", "tiny", tmp_path / "t.zoo", "--quiet", "--workers", "1", **other)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == ""
    assert catalog.verify(tmp_path / "t.zoo").digest == whole[1]


@pytest.mark.parametrize("target", ["parent", "tree"])
def test_kill_nine_and_restart(tmp_path: Path, busy_digest: str, target: str) -> None:
    """Three random moments each here; `python -m benchmarks.faults` does fifty, also on phases_small."""
    spec = write_spec(busy_spec(), tmp_path / "busy.json")
    moments = random.Random(5 if target == "tree" else 6)
    path = tmp_path / "killed.zoo"
    hit = 0
    for _ in range(3):
        process = command("build", spec, path, "--quiet")
        wait_until(lambda process=process: len(children(process.pid)) == 2 or process.poll() is not None)
        workers = children(process.pid)
        time.sleep(moments.uniform(0.5, 5.0))
        hit += process.poll() is None
        process.kill()
        if target == "tree":
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        process.communicate()
        wait_until(lambda workers=workers: gone(workers), 30)  # a worker without a parent stops by itself
    assert hit, "every build was over before its moment came"
    build(busy_spec(), path, workers=0)
    found = catalog.verify(path)
    assert found.ok, found.problems
    assert found.digest == busy_digest
    assert not list(path.rglob(".tmp-*"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_and_keep(tmp_path: Path, busy_digest: str, number: int, status: int) -> None:
    spec = write_spec(busy_spec(), tmp_path / "busy.json")
    path = tmp_path / "stopped.zoo"
    process = command("build", spec, path)
    wait_until(lambda: list((path / "index").glob("*.parquet")) or process.poll() is not None)
    workers = children(process.pid)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert "the same command resumes" in err
    wait_until(lambda: gone(workers), 10)
    before = {p.name for p in (path / "index").glob("*.parquet")}
    assert before
    process = command("build", spec, path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "committed already" in err
    assert before <= {p.name for p in (path / "index").glob("*.parquet")}
    assert catalog.verify(path).digest == busy_digest


def test_a_worker_that_dies_or_hangs_is_replaced(
    tmp_path: Path, busy_digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo.local, "STALL", 12.0)  # importing torch on a busy machine takes seconds
    path = tmp_path / "wounded.zoo"
    done = []

    def wound(event) -> None:
        if event.committed:
            done.append(event.task)
        if len(done) == 1:
            workers = children(os.getpid())
            os.kill(workers[0], signal.SIGKILL)
            os.kill(workers[-1], signal.SIGSTOP)
            done.append(None)

    build(busy_spec(), path, workers=2, on_event=wound)
    assert gone(children(os.getpid()))
    assert catalog.verify(path).digest == busy_digest


def test_workers_that_cannot_start_are_an_error(tmp_path: Path) -> None:
    """The data file vanishes between the plan and the workers."""
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", images=x, labels=np.arange(64) % 2)
    spec = ZooSpec(
        "gone", dataset="arrays", dataset_options={"url": str(tmp_path / "data.npz")}, hyperparameters={"batch_size": 8}
    )
    with pytest.raises(BuildError, match=r"die before they do any work|shards failed"):
        build(spec, tmp_path / "gone.zoo", workers=1, on_estimate=lambda *_: (tmp_path / "data.npz").unlink())


def test_a_full_disk_is_noticed_before_and_during(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "full.zoo"
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
        with pytest.raises(StorageError, match="bytes, its disk has 10 free"):
            build(tiny(), path, workers=0)
    real, shards = os.write, []

    def write(descriptor: int, data: memoryview) -> int:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        shards.extend([name] if "/weights/" in name and name.endswith("-0") else [])
        if len(shards) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(StorageError, match="No space left") as caught:
            build(tiny(), path, workers=0)
    assert caught.value.errno == errno.ENOSPC
    assert len(catalog.open(path).committed()) == 1
    build(tiny(), path, workers=0)
    assert catalog.verify(path).ok


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system of 64 kB, in the worker processes."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mounted)], capture_output=True)
    if made.returncode:
        pytest.skip(f"cannot mount a file system here: {made.stderr.decode().strip()}")
    try:
        process = command("build", "tiny", mounted / "t.zoo")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "No space left on device" in err
        assert "committed shards are kept" in err
        catalog.open(mounted / "t.zoo").table()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_divergence_is_a_status(tmp_path: Path) -> None:
    spec = ZooSpec(
        "wild",
        numbers={"depth": 3, "width": 4},
        dataset="moons",
        hyperparameters={"epochs": 4, "weight_decay": 0.05},  # 900 x 0.05: weights grow 44-fold a step
        axes={"learning_rate": (0.1, 900.0)},
        seeds=(0, 1),
        checkpoints=(0, 1, 4),
    )
    models = build(spec, tmp_path / "wild.zoo", workers=0)
    everything = models.scan(status=None).collect()
    diverged = everything.filter(pl.col("status") == "diverged")
    assert diverged["learning_rate"].to_list() == [900.0] * 2 * 3
    assert diverged["reason"].str.contains(r"not finite at step \d+").all()
    assert (models.scan().collect()["status"] == "ok").all()
    assert len(everything) == 4 * 3
    assert diverged.filter(pl.col("epoch") == 0)["stored"].all()
    assert diverged.filter(~pl.col("stored"))["test_loss"].null_count() == diverged.filter(~pl.col("stored")).height
    assert np.isfinite(models.read(diverged.filter(pl.col("stored")))).all()
    with pytest.raises(catalog.errors.MissingDataError, match="diverged"):
        models.read(diverged.filter(~pl.col("stored")))
    assert catalog.verify(tmp_path / "wild.zoo").ok


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_stored_types(tmp_path: Path, whole: tuple[Path, str], dtype: str) -> None:
    models = build(dataclasses.replace(tiny(), dtype=dtype), tmp_path / "half.zoo", workers=0)
    exact = catalog.open(whole[0])
    for variant in models.layouts:
        rows = models.scan().filter(pl.col("variant") == variant).collect()
        same = exact.read(exact.scan().filter(pl.col("variant") == variant), torch=True)
        torch.testing.assert_close(models.read(rows, torch=True), same.to(getattr(torch, dtype)), rtol=0, atol=0)


def test_another_spec_is_refused_and_resume_needs_none(tmp_path: Path, whole: tuple[Path, str]) -> None:
    path = tmp_path / "copy.zoo"
    shutil.copytree(whole[0], path)
    with pytest.raises(SpecMismatchError, match="batch_size"):
        build(dataclasses.replace(tiny(), axes={"batch_size": (8, 16)}, load=None), path, workers=0)
    for fragment in list((path / "index").glob("*.parquet"))[:1]:
        fragment.unlink()
    resume(path, workers=0)
    assert catalog.verify(path).digest == whole[1]


def test_a_zoo_from_before_a_default_existed_is_continued(tmp_path: Path) -> None:
    spec = dataclasses.replace(tiny(), seeds=(0,))
    plan, content = make_plan(spec), spec.to_json()
    del content["hyperparameters"]["loss_function"]
    made = catalog.create(tmp_path / "z", name="tiny", variants=plan.variants.values(), spec=content, info=plan.info)
    assert build(spec, tmp_path / "z", workers=0).record == made.record
    with pytest.raises(SpecMismatchError, match="loss_function"):
        build(dataclasses.replace(spec, hyperparameters={"loss_function": "mse"}), tmp_path / "z", workers=0)


def test_preview_measures_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cost = preview(tiny(), workers=2)
    assert (cost.runs, cost.shards, cost.workers) == (24, 2, 2)
    assert cost.bytes == 12 * 3 * (22 + 42) * 4
    assert cost.seconds > 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidSpecError, match="workers"):
        build(tiny(), tmp_path / "t.zoo", workers=-1)


def test_progress_counts_every_model_once(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with BuildProgress(console) as progress:
        build(tiny(), tmp_path / "t.zoo", workers=0, on_estimate=progress.on_estimate, on_event=progress.on_event)
        assert progress.bar.tasks[0].completed == progress.bar.tasks[0].total
        assert progress.bar.tasks[0].fields["models"] == pytest.approx(24)
    assert progress.models == 24
    assert "24 models to train" in screen.getvalue()
    assert "models/s" in screen.getvalue()
    quiet = io.StringIO()
    with BuildProgress(Console(file=quiet)) as progress:
        build(tiny(), tmp_path / "t.zoo", workers=0, on_estimate=progress.on_estimate, on_event=progress.on_event)
    assert quiet.getvalue() == "nothing to train: all 24 models are committed\n"
