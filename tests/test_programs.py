"""Compiled programs without a cache, on a full disk, and what the first call says."""

import importlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kernels.mlp import training
from kernels.programs import HERE, Program
from tests import warm
from zoo.progress import BuildProgress


def doubling(digest: str) -> Callable[..., Any]:
    def double(value: int) -> int:
        digest  # noqa: B018  # makes it a part of the function
        return 2 * value

    return double


def test_the_first_call_says_what_compiling_took(caplog: pytest.LogCaptureFixture) -> None:
    program = Program(doubling, [Path(__file__)], {})
    program.dispatcher = program.compile(cached=False)
    with caplog.at_level(logging.INFO):
        assert [program(3), program(4)] == [6, 8]
        assert ["double: first call" in record.message for record in caplog.records] == [True]
        assert program(0.5) == 1.0  # another type compiles again
    assert len(caplog.records) == 2


@pytest.mark.parametrize("quiet", [False, True])
def test_who_builds_a_zoo_is_told(quiet: bool) -> None:
    program = Program(doubling, [], {})
    said = io.StringIO()
    console = Console(file=said)
    with BuildProgress(console, quiet):
        program.dispatcher = program.compile(cached=False)
        program(3)
    program.dispatcher = program.compile(cached=False)
    program(3)  # nobody listens any more
    assert said.getvalue().count("double: first call") == (not quiet)


def test_where_nothing_can_be_cached_it_compiles_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert not training.TRAIN.compile().stats.cache_path


def test_changed_sources_are_another_program(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("1")
    program = Program(lambda digest: lambda: digest, [source], {})
    first = program.compile(cached=False)()
    source.write_text("2")
    assert program.compile(cached=False)() != first


def test_a_full_disk_does_not_stop_it() -> None:
    calls = []

    def full_at_first(value: int) -> int:
        calls.append(value)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return value

    full_at_first.overloads = {}  # type: ignore[attr-defined]  # as numba's dispatchers have
    program = Program(doubling, [], {})
    program.dispatcher = full_at_first
    assert program(3) == 3
    assert calls == [3, 3]


def test_all_programs_are_compiled_before_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test` does it once on all cores; what `tests.warm` leaves out, every process of pytest would compile."""
    files = [path.relative_to(HERE.parent) for path in HERE.rglob("*.py") if " = Program(" in path.read_text()]
    modules = [importlib.import_module(".".join(path.with_suffix("").parts)) for path in files]
    programs = {id(found): found for module in modules for found in vars(module).values() if type(found) is Program}
    assert len(programs) >= len(files) > 5
    for program in programs.values():
        monkeypatch.setattr(program, "dispatcher", None)
    for job in warm.JOBS:
        job()
    assert [program.make.__qualname__ for program in programs.values() if program.dispatcher is None] == []
