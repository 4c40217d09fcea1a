"""The house agrees with itself: version, licence, pins, what is packed, and no address of this or that machine."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [line for line in (ROOT / "constraints-cpu.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {canonical(name): version for name, version in (line.split("==") for line in CONSTRAINTS)}
CORE = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
OPTIONAL = PROJECT["project"]["optional-dependencies"]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in OPTIONAL.items()}


def citation(field: str) -> str:
    """A top-level scalar of CITATION.cff; it is simple enough to need no YAML reader."""
    (value,) = re.findall(rf"^{field}: *\"?([^\"\n]+)\"?$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    return str(value)


def test_version_agrees_everywhere() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert PROJECT["project"]["version"] == citation("version") == newest[1]


def test_licence_agrees_everywhere() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == citation("license") == "Apache-2.0"
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


def test_name_agrees_everywhere() -> None:
    assert PROJECT["project"]["name"] == citation("title") == "weightscape"
    assert PROJECT["project"]["scripts"] == {"weightscape": "weightscape:main"}


def test_every_package_is_packed_and_checked() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == {"kernels", "weightspace", "catalog", "zoo", "generators"}
    modules = packages | {"weightscape.py"}
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]) == modules
    assert set(PROJECT["tool"]["mypy"]["files"]) == modules | {"tests"}
    assert set(PROJECT["tool"]["pytest"]["ini_options"]["testpaths"]) == modules | {"tests"}
    assert set(PROJECT["tool"]["coverage"]["run"]["source_pkgs"]) == packages | {"weightscape"}


@pytest.mark.parametrize("requirement", CORE + EXTRAS["dev"] + EXTRAS["generators"] + EXTRAS["s3"], ids=str)
def test_constraints_pin_what_the_project_asks_for(requirement: Requirement) -> None:
    name = canonical(requirement.name)
    assert name in PINS, f"constraints-cpu.txt does not pin {name}"
    assert requirement.specifier.contains(PINS[name]), f"{name}=={PINS[name]} does not fit {requirement}"


def test_tools_are_pinned_exactly_and_libraries_are_not() -> None:
    assert [str(r) for r in EXTRAS["dev"] if not re.fullmatch(r"==[\d.]+(post\d+)?", str(r.specifier))] == []
    libraries = CORE + [r for name, extra in EXTRAS.items() if name != "dev" for r in extra]
    assert [str(r) for r in libraries if not re.search(r">=", str(r.specifier)) or "==" in str(r.specifier)] == []


def tracked() -> list[Path]:
    """What git has or would add; outside a clone (a release archive), every file but the hidden and the built."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False) if (ROOT / ".git").exists() else None
    if listed is not None and listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    hidden = re.compile(r"/\.|/(build|dist|[^/]*\.zoo|__pycache__)/")
    return [p for p in ROOT.rglob("*") if p.is_file() and not hidden.search(p.relative_to(ROOT.parent).as_posix())]


# Split by a class of one letter, so that this file does not find itself.
PLACES = re.compile(
    rb"[p]ypi\.org|[p]ythonhosted\.org|download\.[p]ytorch\.org|[a]naconda\.org|--(?:extra-)?[i]ndex-url|"
    rb"/[h]ome/\w|/[U]sers/\w|(?<![\w.])/[r]oot/|[A-Z]:\\[U]sers\\"
)


@pytest.mark.parametrize(
    "text", ["https://" + "pypi" + ".org/simple", "-" + "-index-url x", "/" + "home/ann/zoo", "'/" + "root/zoo'"]
)
def test_the_check_for_places_finds(text: str) -> None:
    assert PLACES.search(text.encode())


def test_no_file_names_a_package_index_or_a_home_folder() -> None:
    files = tracked()
    assert ROOT / "pyproject.toml" in files
    found = [(p.relative_to(ROOT).as_posix(), m[0]) for p in files if (m := PLACES.search(p.read_bytes()))]
    assert found == []
