"""What may import what: our packages, the heavy libraries, and nothing that runs code found in a file."""

import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["kernels", "weightspace", "catalog", "zoo", "generators", "weightscape"]
SOURCES = [path for name in ORDER for path in sorted([*(ROOT / name).rglob("*.py"), *ROOT.glob(f"{name}.py")])]
# Heavy libraries and the packages that may name them, wherever in a file; each costs from 0.3 s to 4 s to import.
HEAVY = {
    "triton": {"kernels"},
    "numba": {"kernels"},
    "lightning": {"generators"},
    "pytorch_lightning": {"generators"},
    "wandb": {"generators"},
}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def owner(path: Path) -> str:
    """The package a file belongs to, or the module at the root that it is."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of everything a file imports, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant))


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What in a file could run code that a stored file names."""
    yield from (f"imports {name}" for name in imported(tree) if name in UNSAFE_MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for keyword, safe in (("weights_only", True), ("allow_pickle", False)):
                if any(k.arg == keyword and ast.unparse(k.value) != str(safe) for k in node.keywords):
                    yield f"line {node.lineno}: {keyword} must be {safe}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_left(path: Path) -> None:
    allowed = ORDER[: ORDER.index(owner(path)) + 1]
    ours = {*ORDER, "tests", "benchmarks"} & set(imported(ast.parse(path.read_text())))
    assert ours <= set(allowed), f"{name_of(path)} may import {allowed}, and imports {sorted(ours)}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_libraries_stay_where_they_are_used(path: Path) -> None:
    heavy = set(HEAVY) & set(imported(ast.parse(path.read_text())))
    strangers = sorted(name for name in heavy if owner(path) not in HEAVY[name])
    assert not strangers, f"{name_of(path)} imports {strangers}"


def test_kernels_need_little() -> None:
    """A machine image with a GPU may hold torch, Triton, numba, numpy and scipy, and nothing else that we use."""
    allowed = {"kernels", "torch", "triton", "numba", "llvmlite", "numpy", "scipy", *sys.stdlib_module_names}
    files = [path for path in SOURCES if owner(path) == "kernels"]
    assert {name for path in files for name in imported(ast.parse(path.read_text()))} <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_loads_code_from_a_file(path: Path) -> None:
    assert list(unsafe(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    import pickle",
        "from joblib import load",
        "importlib.import_module('dill')",
        "torch.load(p, weights_only=False)",
        "numpy.load(p, allow_pickle=flag)",
    ],
)
def test_the_check_for_unsafe_loading_finds(text: str) -> None:
    assert list(unsafe(ast.parse(text)))


def test_there_is_something_to_check() -> None:
    assert {owner(path) for path in SOURCES} == set(ORDER)


def run_python(code: str) -> str:
    """Output of code in a fresh interpreter: in this one, everything has long been imported."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", ["weightspace.layout", "weightscape", "catalog"])
def test_light_imports(module: str) -> None:
    """`catalog` with every module in it: somebody who only reads zoos has no torch, and `--help` has half a second."""
    walk = f"""
import importlib, pkgutil, sys
module = importlib.import_module({module!r})
for info in pkgutil.walk_packages(getattr(module, "__path__", []), {module!r} + "."):
    importlib.import_module(info.name)
print(*sorted({{"torch", "lightning", "pytorch_lightning", "triton", "numba"}} & set(sys.modules)))
"""
    assert run_python(walk).split() == []


def test_probing_for_the_other_kernels_finds_no_version() -> None:
    """Hugging Face has a package of the same import name: transformers looks whether it is there, and how new it is."""
    assert importlib.util.find_spec("kernels") is not None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("kernels")
    probe = "import kernels, sys; print(getattr(kernels, '__version__', 'N/A'), kernels.__file__, *sys.modules)"
    version, file, *modules = run_python(probe).split()
    assert (version, file) == ("N/A", str(ROOT / "kernels" / "__init__.py"))
    assert "torch" not in modules, "looking for kernels costs the import of torch"
