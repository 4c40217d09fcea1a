"""Errors a user can meet. Each says what was expected, what came and what to do; all share `ZooError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZooError(Exception):
    """Base of every error weightscape raises on purpose."""

    def __str__(self) -> str:  # KeyError would show the message in quotes, OSError would look for an errno
        return str(self.args[0]) if self.args else ""


class NotAZooError(ZooError, FileNotFoundError):
    """The place named is no zoo: nothing there, or no zoo.json."""


class FormatError(ZooError, ValueError):
    """A file is of a format or shape this version does not read."""


class NoRangesError(FormatError):
    """A server gives the whole file where a range of it was asked for."""


class CorruptError(ZooError, OSError):
    """Bytes differ from what was committed."""


class MissingDataError(CorruptError):
    """Bytes that were committed are not there, or rows that hold no weights were asked for."""


class SpecMismatchError(ZooError, ValueError):
    """A zoo exists in this place, made from another spec."""


class InvalidSpecError(ZooError, ValueError):
    """A spec asks for something impossible."""


class QueryError(ZooError, ValueError):
    """A query, or rows handed to `read`, do not fit the table."""


class StorageError(ZooError, OSError):
    """The disk or object store refused: full, read-only, no permission."""


class OfflineError(StorageError):
    """Something is not on this machine, and `WEIGHTSCAPE_OFFLINE` forbids to ask for it."""


class PublishError(ZooError, ValueError):
    """A zoo cannot be published as asked; what is published already stays as it is."""


class RetractedError(ZooError, ValueError):
    """The version asked for was retracted; the registry says why."""


class BuildError(ZooError, RuntimeError):
    """Some shards could not be built; what was committed stays."""


class MeasureError(ZooError, RuntimeError):
    """Some rows could not be measured; what was measured stays."""


class AlignError(ZooError, ValueError):
    """Networks cannot be aligned, or an alignment changes what they compute; nothing of it was stored."""


class GeneratorError(ZooError, ValueError):
    """A generator cannot be trained, stored, loaded, sampled or judged as asked."""


class SourceError(ZooError, ValueError):
    """What should be imported is of no known format, cannot be read, or needs a permission that was not given."""


class UnknownNameError(ZooError, KeyError):
    """A name that is not in its dict."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not known, with the known ones and the nearest.

    >>> print(unknown_name("optimizer", "sdg", ["sgd", "adamw"]))
    unknown optimizer 'sdg'; known: adamw, sgd; did you mean 'sgd'?
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"unknown {kind} {str(name)!r}; known: {', '.join(names)}{hint}")
