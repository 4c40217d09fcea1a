"""The hostile corpus: typed errors, right weights, few seconds, little memory, no foreign file, host or code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.cases import CASES
from tests.processes import ROOT

SECONDS = 5.0  # of CPU time, for all attempts of a case together
MEMORY = 500 << 20


def outcomes(home: Path) -> dict[str, dict[str, Any]]:
    """Case -> what happened. A process that ends, or hangs, begins anew behind the case that did it."""
    left = [case.name for case in CASES]
    found: dict[str, dict[str, Any]] = {}
    for turn in range(20):
        place = home / str(turn)
        place.mkdir()
        done = run(place, left)
        found |= done
        left = left[len(done) :]
        if not left:
            return found
    raise AssertionError("twenty cases ended the process")


def run(place: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    (place / "cache").mkdir()
    environment = {
        **os.environ,
        "WEIGHTSCAPE_CACHE": str(place / "cache"),
        "TMPDIR": str(place / "cache"),
        "RUST_BACKTRACE": "0",
    }
    command = [sys.executable, "-m", "tests.hostile.guard", str(place), json.dumps(names)]
    found: dict[str, dict[str, Any]] = {}
    begun = ""
    with (
        (place / "said").open("w") as said,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            entry = json.loads(line)
            if "begin" in entry:
                begun = entry["begin"]
            else:
                found[entry.pop("end")] = entry
        code = process.wait()
    if code:
        tail = (place / "said").read_text()[-2000:]
        assert begun, tail
        found[begun] = {"died": f"{begun} ended the process with {code}: {tail}"}
    return found


@pytest.fixture(scope="module")
def happened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return outcomes(tmp_path_factory.mktemp("hostile"))


def problem(case: Any, outcome: dict[str, Any]) -> str:
    """What is wrong with how a case ended, empty if it is as it must be."""
    if "died" in outcome:
        return str(outcome["died"])
    said: dict[str, str] = outcome["said"]
    if untyped := [f"{name}: {text}" for name, text in said.items() if text.startswith("NOT TYPED")]:
        return untyped[0]
    if outcome["seen"]:
        return f"did what it must not: {outcome['seen']}"
    if outcome["seconds"] > SECONDS or outcome["bytes"] > MEMORY:
        return f"took {outcome['seconds']:.1f} s, {outcome['bytes']:,} bytes"
    if case.said and not any(re.search(case.said, text, re.DOTALL) for text in said.values()):
        return f"nothing says {case.said!r}: {said}"
    if case.said and case.verified and not said["verify"]:
        return f"verify finds nothing: {said}"
    if not case.said and case.verified and any(said.values()):
        return f"should do no harm: {said}"
    return ""


def test_the_corpus(happened: dict[str, dict[str, Any]]) -> None:
    wrong = {case.name: text for case in CASES if (text := problem(case, happened[case.name]))}
    assert not wrong, "\n".join(f"{name}: {text[-1500:]}" for name, text in wrong.items())
    assert len(happened) == len(CASES) >= 450


def test_names_are_distinct() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
