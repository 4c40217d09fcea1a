"""Object stores by other libraries than fsspec, which call the same options otherwise: polars, and obstore for ranges.

Measured on moto, two busy cores: 64 ranges of 14 kB and 400 of 24 kB take obstore 0.7 to 0.8 of the time of s3fs and a
quarter of its processor time.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from catalog.errors import QueryError

if TYPE_CHECKING:
    from catalog.folder import Folder

TOGETHER = 32  # requests under way
Ranges = Callable[[Sequence[str], Sequence[int], Sequence[int]], list[Any]]

# fsspec option -> name in object_store, which polars and obstore are made with
S3 = {"key": "aws_access_key_id", "secret": "aws_secret_access_key", "token": "aws_session_token"}
S3 |= {"endpoint_url": "aws_endpoint_url", "region_name": "aws_region"}


def polars_source(folder: Folder, name: str) -> tuple[str, dict[str, str]]:
    """URL and storage_options by which polars reads a file of a folder.

    Raises:
        QueryError: a scheme that polars does not read, or an option that has no counterpart there.
    """
    if folder.local:
        return folder.path(name), {}
    url = f"{folder.url.rstrip('/')}/{name}"
    scheme = url.split("://", 1)[0]
    options = dict(folder.fs.storage_options)
    if scheme in ("s3", "s3a"):
        return url, s3_options(options)
    if scheme in ("http", "https"):
        return url, {}
    if scheme in ("gs", "gcs"):
        return f"gs://{url.split('://', 1)[1]}", _gs_options(options)
    if scheme == "hf":
        return url, {"token": str(options["token"])} if options.get("token") else {}
    raise QueryError(f"polars does not read {scheme}://; use scan(), or copy the zoo to a folder")


def s3_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Options of s3fs as object_store calls them; QueryError for one that has no counterpart."""
    client = dict(options.get("client_kwargs") or {})
    given = {**{name: value for name, value in options.items() if name != "client_kwargs"}, **client}
    found = {S3[name]: str(given.pop(name)) for name in S3 if given.get(name)}
    if given.pop("anon", False):
        found["aws_skip_signature"] = "true"
    if found.get("aws_endpoint_url", "").startswith("http://"):
        found["aws_allow_http"] = "true"
    if "aws_endpoint_url" in found:
        found.setdefault("aws_region", "us-east-1")  # which servers of other makers do not look at
    return _all_known(given, found)


def fast_ranges(fs: Any) -> Ranges | None:
    """What fetches byte ranges faster than this filesystem, None where nothing does.

    That is obstore for s3://, where it is installed and has the same options. Without keys it would look for them in
    fewer places than s3fs does, so it takes no part there.
    """
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
    if "s3" not in protocols or importlib.util.find_spec("obstore") is None:
        return None
    try:
        options = s3_options(getattr(fs, "storage_options", {}))
    except QueryError:
        return None
    known = {"aws_access_key_id", "aws_secret_access_key"} <= options.keys() or "aws_skip_signature" in options
    return functools.partial(_obstore_ranges, fs, tuple(sorted(options.items()))) if known else None


def _obstore_ranges(
    fs: Any, options: tuple[tuple[str, str], ...], paths: Sequence[str], starts: Sequence[int], stops: Sequence[int]
) -> list[Any]:
    """Bytes, or an exception, for each range. What obstore does not give is asked for once more, by fsspec."""
    from obstore import get_range

    def one(path: str, start: int, stop: int) -> Any:
        bucket, key = path.split("/", 1)
        try:
            return bytes(get_range(_store(os.getpid(), bucket, options), key, start=start, end=stop))
        except Exception as error:  # its errors share no base with those of Python
            return error

    with ThreadPoolExecutor(min(TOGETHER, len(paths))) as pool:
        found = list(pool.map(one, paths, starts, stops))
    if again := [at for at, part in enumerate(found) if isinstance(part, Exception)]:
        some = [[values[at] for at in again] for values in (paths, starts, stops)]
        for at, part in zip(again, fs.cat_ranges(*some, on_error="return"), strict=True):
            found[at] = part
    return found


@functools.lru_cache(64)
def _store(_: int, bucket: str, options: tuple[tuple[str, str], ...]) -> Any:
    from obstore.store import S3Store

    return S3Store(bucket, config=dict(options))  # type: ignore[arg-type]  # a TypedDict; `s3_options` makes its keys


def _gs_options(options: dict[str, Any]) -> dict[str, str]:
    token = options.pop("token", None)
    if token == "anon":
        return _all_known(options, {"google_skip_signature": "true"})
    if token is not None and not isinstance(token, str):
        raise QueryError("polars takes the token of gs:// as the path of a service account file")
    return _all_known(options, {"google_service_account": token} if token else {})


def _all_known(left: Mapping[str, Any], found: dict[str, str]) -> dict[str, str]:
    # these change how fsspec works, not what it reaches
    harmless = {"project", "use_listings_cache", "skip_instance_cache", "asynchronous", "default_block_size"}
    if unknown := sorted(name for name, value in left.items() if value is not None and name not in harmless):
        raise QueryError(f"storage option {unknown[0]!r} has no counterpart in polars; use scan()")
    return found
