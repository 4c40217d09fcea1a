"""What must be decided before anything of ours, torch or Triton is imported; runs where the last two are missing."""

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.servers import bucket as bucket
from tests.servers import counted_s3 as counted_s3
from tests.servers import memory as memory
from tests.servers import s3_options as s3_options
from tests.servers import web as web


def gpu_is_usable() -> bool:
    """Whether there is a CUDA device and a torch built for it, found out without importing torch (2.4 s, two cores)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return False
    return not torch_version.endswith("+cpu") and any(Path("/dev").glob("nvidia[0-9]*"))


GPU = gpu_is_usable()
if not GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, at the first import of triton
# One thread each, inherited by workers: the suite runs in several processes, and the sums of one thread repeat.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# No deadline: on a busy machine time says nothing about the code. In CI the same examples every time.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTSCAPE_CACHE", os.fspath(tmp_path_factory.mktemp("cache")))
        patch.delenv("WEIGHTSCAPE_OFFLINE", raising=False)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `gpu` where there is none."""
    for item in items:
        if not GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and a torch built for it"))
