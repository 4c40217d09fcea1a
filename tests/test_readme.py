"""The README runs: its commands, then its Python, from top to bottom in one empty folder, as a reader would."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^(?P<fence>```+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)
SHELLS = {"console", "bash", "sh", "shell"}


def blocks(text: str, languages: set[str]) -> list[str]:
    """Bodies of the fenced blocks in these languages, but for those whose info string says `no-run`."""
    found = [(match["info"].split(), match["body"]) for match in FENCE.finditer(text)]
    return [body for info, body in found if info and info[0] in languages and "no-run" not in info]


def commands(text: str) -> list[str]:
    """The `weightscape` lines of the shell blocks, with a prompt or without, continued over a backslash or not."""
    lines = [line for body in blocks(text, SHELLS) for line in body.replace("\\\n", " ").splitlines()]
    bare = [line.strip().removeprefix("$ ").strip() for line in lines]
    return [line for line in bare if line.split()[:1] == ["weightscape"]]


def run(arguments: list[str], folder: Path) -> None:
    """Runs one process in `folder` with `weightscape` on its path; on failure the test shows what was run and said."""
    shim = folder / ".bin" / "weightscape"
    if not shim.exists():
        shim.parent.mkdir()
        code = "import sys, weightscape; sys.argv[0] = 'weightscape'; sys.exit(weightscape.main())"
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
        shim.chmod(0o755)
    path = os.pathsep.join([str(shim.parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments[-1]}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}"


def run_document(text: str, folder: Path) -> None:
    for command in commands(text):
        run(["bash", "-euo", "pipefail", "-c", command], folder)
    # From a file, not -c: a traceback then shows the line, and worker processes can import the main module.
    script = folder / "readme_blocks.py"
    script.write_text("\n".join(blocks(text, {"python"})))
    run([sys.executable, "-W", "error", str(script)], folder)


def test_readme_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    assert commands(text), "README.md shows no `weightscape` command"
    assert blocks(text, {"python"}), "README.md shows no Python"
    run_document(text, tmp_path)


DOCUMENT = """
```console
$ weightscape build demo \\
    demo.zoo
built
```
```bash no-run
weightscape serve demo.zoo
```
```text
weightscape not-a-command
```
```python
one = 1
```
````python
two = "``" + str(one)
````
```python no-run
raise SystemExit(1)
```
"""


def test_blocks_and_commands_are_found() -> None:
    assert [line.split() for line in commands(DOCUMENT)] == [["weightscape", "build", "demo", "demo.zoo"]]
    assert blocks(DOCUMENT, {"python"}) == ["one = 1\n", 'two = "``" + str(one)\n']


@pytest.mark.parametrize("broken", ["```python\nassert False\n```", "```bash\nweightscape no-such-command\n```"])
def test_a_block_that_fails_fails_the_test(broken: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended with"):
        run_document(broken, tmp_path)
