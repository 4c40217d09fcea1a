import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import OURS, Task, assignments, gathers, main, measured, products
from benchmarks.record import RESULTS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TASKS: dict[str, Callable[[], Iterator[Task]]] = {
    "assign": lambda: assignments(DEVICE, [(2, 6)]),
    "similarity": lambda: products(DEVICE, [(2, 3, 5)]),
    "permute": lambda: gathers(DEVICE, [(2, 3, 5)]),
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
    assert all(row["against"] != OURS and row["ratio"]["median"] > 0 for row in rows)
    assert all(row["seconds"][OURS]["p20"] <= row["seconds"][OURS]["p80"] for row in rows)
    assert len({(str(row["setting"]), row["against"]) for row in rows}) == len(rows) > 0


@pytest.mark.parametrize("name", TASKS)
def test_a_wrong_result_is_no_row(name: str, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: object, **options: object) -> torch.Tensor:
        return torch.zeros(2, 3, 3, device=DEVICE)

    task = next(TASKS[name]())
    monkeypatch.setattr("kernels.similarity.triton_similarity.similarity_triton", wrong)
    monkeypatch.setattr("kernels.permute.triton_gather.gather_triton", wrong)
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
