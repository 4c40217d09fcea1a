"""What the commands share: options, how errors and signals end a process, how settings are read."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

INTERRUPTED, TERMINATED = 130, 143

ZooArgument = Annotated[
    str, typer.Argument(metavar="ZOO", help="A zoo: a folder, or any fsspec URL.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MetricsAt = Annotated[
    str | None, typer.Option("--metrics-at", help="Folder or URL of measured columns, if not in the zoo.")
]
Storage = Annotated[
    list[str] | None, typer.Option("--storage", help="NAME=VALUE for fsspec, as in endpoint_url=http://host:9000.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


class Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Errors of ours become a line and exit status 1; a signal its own status."""
    from catalog.errors import ZooError

    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except ZooError as error:
        if as_json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        else:
            print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except (KeyboardInterrupt, Terminated) as stop:
        stopped(stop, "nothing was left half-written")
    except BrokenPipeError as error:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


@contextmanager
def kept(what: str) -> Iterator[None]:
    """Says what is kept when a signal stops the block."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        stopped(stop, f"kept is what was {what}")


def stopped(stop: BaseException, message: str) -> NoReturn:
    print(f"stopped: {message}", file=sys.stderr)
    raise typer.Exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED) from stop


def console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def is_place(text: str) -> bool:
    """Whether the last argument of `query` is one more zoo rather than a condition."""
    return "://" in text or text.startswith("zoo:") or os.path.exists(text) or text.rstrip("/").endswith(".zoo")


def names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def settings_of(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE as JSON where it is some, else as text; an empty value is null."""
    from catalog.errors import QueryError

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise QueryError(f"expected NAME=VALUE, got {text!r}; `weightscape metrics` lists settings of metrics")
        try:
            found[name.strip()] = json.loads(value or "null")
        except ValueError:
            found[name.strip()] = value
    return found
