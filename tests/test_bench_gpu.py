import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import assignments, gathers, main, measured, products
from benchmarks.gpu_networks import distances, forwards, overlaps
from benchmarks.gpu_task import Task
from benchmarks.record import RESULTS
from kernels.forward.forward import Forward, reference
from kernels.forward.problem import Problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TASKS: dict[str, Callable[[], Iterator[Task]]] = {
    "assign": lambda: assignments(DEVICE, [(2, 6)]),
    "similarity": lambda: products(DEVICE, [(2, 3, 5)]),
    "permute": lambda: gathers(DEVICE, [(2, 3, 5)]),
    "forward": lambda: forwards(DEVICE, [(2, 3)], 9, 2),
    "overlap": lambda: overlaps(DEVICE, [(2, 3, 20)]),
    "distance": lambda: distances(DEVICE, [(2, 3, 50)]),
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert RESULTS.name == "results"
    monkeypatch.setattr("benchmarks.record.RESULTS", tmp_path)
    return tmp_path / "gpu.jsonl"


@pytest.mark.parametrize("name", TASKS)
def test_rows_say_what_was_measured(name: str, results: Path) -> None:
    for task in TASKS[name]():
        assert measured(task, DEVICE, 1) == 0
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert all(row["operation"].startswith(name) for row in rows)
    for row in rows:
        ours = next(iter(row["seconds"]))
        assert row["against"] != ours
        assert row["ratio"]["median"] > 0
        assert row["seconds"][ours]["p20"] <= row["seconds"][ours]["p80"]
    assert len({(str(row["setting"]), row["against"]) for row in rows}) == len(rows) > 0


@pytest.mark.parametrize("name", TASKS)
def test_a_wrong_result_is_no_row(name: str, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: object, **options: object) -> torch.Tensor:
        return torch.zeros(2, 3, 3, device=DEVICE)

    def wrong_forward(problem: Problem, logits: bool) -> Forward:
        found = reference(problem, logits)
        return replace(found, loss_sum=found.loss_sum + 1)

    task = next(TASKS[name]())
    monkeypatch.setattr("kernels.similarity.triton_similarity.similarity_triton", wrong)
    monkeypatch.setattr("kernels.permute.triton_gather.gather_triton", wrong)
    monkeypatch.setattr("kernels.overlap.triton_overlap.overlap_triton", wrong)
    monkeypatch.setattr("kernels.forward.triton_forward.forward_triton", wrong_forward)
    monkeypatch.setattr("kernels.distance.distance._block", lambda a, b, centre: torch.ones(len(a), len(b)).double())
    monkeypatch.setattr("benchmarks.gpu.reference", lambda cost, threads: torch.zeros(cost.shape[:2], device=DEVICE))
    assert measured(task, DEVICE, 1) == 1
    assert not results.exists()


def test_without_a_gpu_it_says_so(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert not results.exists()
