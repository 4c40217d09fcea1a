"""Importing what torch saved: tensors alone come out, no code runs, and reading has limits."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import catalog
from catalog.errors import InvalidSpecError
from catalog.importers import import_zoo
from catalog.importers.found import BrokenError, Options, Tensors
from catalog.importers.pickles import Pickles, resident
from tests.import_sources import check, labelled_folder, prefixed, ray_zoo, save_pickle, tensors, trial_name
from tests.processes import children, gone, wait_until

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pickles() -> Iterator[Pickles]:
    with pytest.MonkeyPatch.context() as patch, Pickles(Options(True, memory_limit=1 << 30)) as reader:
        patch.setenv("SECRET_KEY", "x")
        yield reader


def read(pickles: Pickles, path: Path) -> Tensors:
    return pickles.open(path, path.name).load()


def test_ray_zoo_of_pickles(tmp_path: Path) -> None:
    truth = ray_zoo(tmp_path / "source")
    report = import_zoo(tmp_path / "source", tmp_path / "zoo", allow_pickle_subset=True)
    zoo = catalog.open(tmp_path / "zoo")
    table = check(zoo, truth)
    assert (report.format, report.members, report.stored, report.missing) == ("ray", 14, 12, 1)
    assert table.filter(run=trial_name(0, 0.01, 1))["time_total_s"].to_list() == [0.0, 10.0, 50.0]
    reasons = [reason for _, reason in report.failed]
    assert "cut short or damaged" in reasons[0]
    assert "not finite" in reasons[1]
    assert not catalog.verify(zoo.url).problems


def test_folder_of_pickles(tmp_path: Path) -> None:
    """The order of tensors in a file makes no other architecture."""
    truth = labelled_folder(tmp_path / "inr", save=save_pickle, suffix=".pth")
    content = tensors(5)
    save_pickle(tmp_path / "inr" / "mnist_5" / "a.pt", dict(reversed(content.items())))
    report = import_zoo(tmp_path / "inr", tmp_path / "zoo", allow_pickle_subset=True)
    table = check(catalog.open(tmp_path / "zoo"), truth | {("mnist_5/a", 0): content})
    assert table.sort("run")["label"].to_list() == ["mnist_2", "mnist_2", "mnist_5", "mnist_7", "mnist_7"]
    assert list(report.variants) == ["net"]


def test_all_dtypes_come_back_to_the_bit(pickles: Pickles, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    content = {
        "f16": torch.randn(3, 2, generator=generator).half(),
        "bf16": torch.randn(5, generator=generator).bfloat16(),
        "f32": torch.randn(2, 3, generator=generator).T,  # not contiguous
        "f64": torch.randn(4, generator=generator).double(),
        "odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "i64": torch.tensor([-(2**62), 3]),
        "u8": torch.arange(6, dtype=torch.uint8)[::2],
        "truth": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    torch.save(content, tmp_path / "a.pt")
    found = read(pickles, tmp_path / "a.pt")
    assert list(found) == list(content)
    for name, value in content.items():
        expected = value.detach().float() if name == "bf16" else value.detach()
        assert found[name].dtype == expected.numpy().dtype
        assert found[name].tobytes() == expected.contiguous().numpy().tobytes()


def test_old_files_and_their_shapes(pickles: Pickles, tmp_path: Path) -> None:
    """The format of before torch 1.6; a module's state dict; a tensor alone; state dicts inside checkpoints."""
    content = tensors(1)
    state = {name: torch.from_numpy(value.copy()) for name, value in content.items()}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": state}, tmp_path / "lightning.ckpt")
    torch.save({"model": {"model_state_dict": OrderedDict(state), "step": 1}}, tmp_path / "nested.pt")
    mixed: dict[Any, Any] = {**state, "lr": 0.1, "name": "x", 3: torch.ones(1)}
    torch.save(mixed, tmp_path / "mixed.pt")
    torch.save(prefixed(state), tmp_path / "parallel.pt")
    for name in ("old.pt", "lightning.ckpt", "nested.pt", "mixed.pt", "parallel.pt"):
        found = read(pickles, tmp_path / name)
        assert found.keys() == content.keys()
        for tensor, value in content.items():
            np.testing.assert_array_equal(found[tensor], value)
    torch.save(state["head.weight"], tmp_path / "alone.pt")
    assert list(read(pickles, tmp_path / "alone.pt")) == ["weights"]
    notes = {name: pickles.open(tmp_path / name, name).notes for name in ("lightning.ckpt", "mixed.pt", "parallel.pt")}
    assert notes["lightning.ckpt"] == ("entries that are no weights were left out: epoch, optimizer",)
    assert notes["mixed.pt"] == ("entries that are no weights were left out: 3, lr, name",)
    assert notes["parallel.pt"] == ("the prefix 'module.' was taken from all names",)


def test_tied_tensors_are_stored_once(pickles: Pickles, tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    torch.save(prefixed({"in.weight": weight, "b": weight[0], "out.weight": weight}), tmp_path / "a.pt")
    layout = pickles.open(tmp_path / "a.pt", "a.pt").layout
    assert layout.names == ("in.weight", "b")
    assert layout.aliases == (("out.weight", "in.weight"),)


class Runs:
    """Touches a file where its pickle is loaded without care."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


def claims(numbers: int) -> bytes:
    """A file of torch whose tensor claims more numbers than the file holds."""
    out = io.BytesIO()
    torch.save({"w": torch.zeros(7)}, out)
    source, forged = zipfile.ZipFile(out), io.BytesIO()
    with zipfile.ZipFile(forged, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"K\x07") >= 2
                data = data.replace(b"K\x07", b"\x8a\x08" + struct.pack("<q", numbers))
            target.writestr(name, data)
    return forged.getvalue()


def bomb(size: int) -> bytes:
    """A file of torch whose data are zeros, deflated."""
    out = io.BytesIO()
    torch.save({"w": torch.zeros(size // 4)}, out)
    source, packed = zipfile.ZipFile(out), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return packed.getvalue()


def saved(content: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def hostile(folder: Path) -> Mapping[str, bytes]:
    """Files that want something, or are none. `folder` is where they would leave a trace."""
    trace = str(folder / "trace")
    runs = [Runs(os.mkdir, trace), Runs(os.system, f"touch {trace}"), Runs(open, trace, "w"), Runs(exec, "1/0")]
    runs += [Runs(eval, f"__import__('os').mkdir({trace!r})"), Runs(subprocess.Popen, ["touch", trace])]
    files = {f"runs {n}": saved({"w": torch.ones(2), "x": run}) for n, run in enumerate(runs)}
    files |= {
        f"runs in an old file {n}": saved(run, _use_new_zipfile_serialization=False) for n, run in enumerate(runs)
    }
    return files | {
        "a module": saved(Net()),
        "a list": saved([torch.ones(2)]),
        "nothing but plain values": saved({"lr": 0.1}),
        "an empty dict": saved({}),
        "a sparse tensor": saved({"w": torch.eye(3).to_sparse()}),
        "a complex tensor": saved({"w": torch.ones(2, dtype=torch.complex64)}),
        "a tensor without numbers": saved({"w": torch.ones(2, device="meta")}),
        "an eight-bit float": saved({"w": torch.ones(2).to(torch.float8_e4m3fn)}),
        "a name with a line feed": saved({"a\nb": torch.ones(2)}),
        "a name of surrogates": saved({"\ud800": torch.ones(2)}),
        "empty": b"",
        "text": b"weights",
        "cut short": saved({"w": torch.ones(1000)})[:-100],
        "a zip of something else": b"PK\x05\x06" + b"\0" * 18,
        "claims more than it holds": claims(2**20),
        "claims a petabyte": claims(2**48),
        "claims less than nothing": claims(-5),
        "a bomb": bomb(64 << 20),
        "expands": saved({"w": torch.ones(1).expand(2**33)}),  # 32 GiB out of four bytes
    }


def test_no_code_runs_and_good_files_are_read(tmp_path: Path) -> None:
    """One process after the other reads them all; each says why not; the good ones between them come through."""
    files = hostile(tmp_path)
    (tmp_path / "nets").mkdir()
    before = children(os.getpid())
    for number, content in enumerate(files.values()):
        (tmp_path / "nets" / f"{number:03d}.pt").write_bytes(content)
        if number % 5 == 0:
            save_pickle(tmp_path / "nets" / f"{number:03d}-good.pt", tensors(number))
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo", allow_pickle_subset=True, memory_limit=1 << 30)
    good = {(f"{n:03d}-good", 0): tensors(n) for n in range(0, len(files), 5)}
    check(catalog.open(tmp_path / "zoo"), good)
    reasons = dict(report.failed)
    assert set(reasons) == {f"{n:03d}.pt" for n in range(len(files))}
    named = {name: reasons[f"{n:03d}.pt"] for n, name in enumerate(files)}
    assert all(named.values())
    assert all("have to run code" in named[name] for name in named if name.startswith("runs") or name == "a module")
    assert "memory_limit" in named["expands"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nets", "zoo"]  # no trace
    assert children(os.getpid()) == before


def test_the_limit_of_memory_holds(tmp_path: Path) -> None:
    large = {"w": torch.zeros(24 << 20)}
    (tmp_path / "large.pt").write_bytes(saved(large))
    (tmp_path / "old.pt").write_bytes(saved(large, _use_new_zipfile_serialization=False))
    (tmp_path / "small.pt").write_bytes(saved({"w": torch.ones(3)}))
    with Pickles(Options(allow_pickle_subset=True, memory_limit=64 << 20)) as pickles:
        for name in ("large.pt", "old.pt"):
            with pytest.raises(BrokenError, match="more memory than memory_limit"):
                read(pickles, tmp_path / name)
        assert read(pickles, tmp_path / "small.pt")["w"].tolist() == [1, 1, 1]


def test_a_reader_that_hangs_dies_or_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, the file is said to be broken, and the next file gets a new one.

    A pipe that nobody writes to stands for a file that is never read to its end.
    """
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "a.pt").write_bytes(saved({"w": torch.ones(3)}))
    readers = []
    with Pickles(Options(allow_pickle_subset=True)) as pickles:

        def works() -> None:
            assert read(pickles, tmp_path / "a.pt")["w"].tolist() == [1, 1, 1]
            assert pickles._process is not None
            readers.append(pickles._process.pid)

        works()
        monkeypatch.setattr(pickles, "options", Options(allow_pickle_subset=True, time_limit=1.0))
        with pytest.raises(BrokenError, match="more than the 1 s allowed"):
            read(pickles, tmp_path / "pipe.pt")
        monkeypatch.undo()
        works()
        assert resident(readers[-1]) > 50 << 20
        os.kill(readers[-1], signal.SIGKILL)
        wait_until(lambda: gone(readers))
        with pytest.raises(BrokenError, match="ended with -9"):
            read(pickles, tmp_path / "a.pt")
        works()
        monkeypatch.setattr("catalog.importers.pickles.sys.platform", "darwin")  # which does not keep to RLIMIT_AS
        monkeypatch.setattr("catalog.importers.pickles.resident", lambda process: 1 << 40)
        with pytest.raises(BrokenError, match="more memory"):
            read(pickles, tmp_path / "pipe.pt")
    assert len(set(readers)) == 3
    assert gone(readers)


def test_the_reader_sees_little_of_the_environment(pickles: Pickles, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"w": torch.ones(3)}))
    read(pickles, tmp_path / "a.pt")
    assert pickles._process is not None
    where = Path(f"/proc/{pickles._process.pid}")
    assert b"SECRET_KEY" not in (where / "environ").read_bytes()
    limits = {line[:25].strip(): line[26:].split()[0] for line in (where / "limits").read_text().splitlines()}
    assert (limits["Max file size"], limits["Max core file size"]) == ("0", "0")
    assert limits["Max address space"] != "unlimited"


KILLED = """
import os, signal, sys
from catalog.importers import import_zoo
def progress(done, of):
    print("one", flush=True)
    import time
    time.sleep(60)
import_zoo(sys.argv[1], sys.argv[2], progress=progress, allow_pickle_subset=True)
"""


def test_a_killed_import_leaves_no_reader_and_goes_on(tmp_path: Path) -> None:
    source, zoo = tmp_path / "source", tmp_path / "zoo"
    for number in range(20):
        save_pickle(source / f"n{number:02d}.pt", tensors(number))
    code = [sys.executable, "-c", KILLED, str(source), str(zoo)]
    process = subprocess.Popen(code, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    readers = children(process.pid)
    assert len(readers) == 1
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: gone(readers))
    assert len(catalog.open(zoo).committed()) == 1
    import_zoo(source, zoo, allow_pickle_subset=True)
    check(catalog.open(zoo), {(f"n{number:02d}", 0): tensors(number) for number in range(20)})


# What else a zoo is for


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("imported")
    for number in range(8):
        save_pickle(place / "nets" / f"n{number}.pt", {"w": np.full((3, 3), number, np.float32)})
    import_zoo(place / "nets", place / "zoo", allow_pickle_subset=True)
    return place / "zoo"


def test_what_needs_the_network_says_so(imported: Path) -> None:
    from generators.train import train
    from zoo.alignment.align import align
    from zoo.duplicates import duplicates
    from zoo.landscape.measure import measure

    with pytest.raises(InvalidSpecError, match="imported; how they were trained"):
        measure(imported, "weight_norm", workers=0)
    with pytest.raises(InvalidSpecError, match=r"imported: .* not how to run them"):
        align(imported)
    with pytest.raises(InvalidSpecError, match="imported"):
        duplicates(imported)
    with pytest.raises(InvalidSpecError, match="imported"):
        train(imported, imported.parent / "flow")


def test_it_packs_and_unpacks(imported: Path, tmp_path: Path) -> None:
    catalog.pack(imported, tmp_path / "packed")
    catalog.unpack(tmp_path / "packed", tmp_path / "back")
    assert catalog.verify(tmp_path / "back").digest == catalog.verify(imported).digest
    weights = catalog.open(tmp_path / "packed").read(catalog.open(imported).scan().sort("run"))
    np.testing.assert_array_equal(weights, np.repeat(np.arange(8, dtype=np.float32), 9).reshape(8, 9))


def test_its_state_dicts_load(imported: Path) -> None:
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros(3, 3))
    zoo = catalog.open(imported)
    row = zoo.scan().filter(pl.col("run") == "n2").collect()
    module.load_state_dict(zoo.state_dict(row, torch=True))
    assert module.w.tolist() == [[2.0] * 3] * 3
