"""Object stores by other libraries than fsspec, which take the same options under other names: polars and obstore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalog.errors import QueryError
from catalog.folder import Folder

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
