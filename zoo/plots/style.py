"""What all pictures share: size, type, colours, and a way to disk. Figures are objects; pyplot is never loaded.

Widths are those of a two-column paper. Nothing is smaller than 7 points at that size.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from catalog.errors import InvalidSpecError, StorageError, unknown_name

WIDTHS = {"single": 3.3, "double": 6.8}  # inches
SMALL, NORMAL = 7.0, 8.0  # points
HANDLE = 1.2  # of a legend's patch or line, in letters
FORMATS = (".png", ".svg")
DPI = 300
# Okabe and Ito 2008, "Color universal design". Phases get those that also differ in grey, dark to light and back.
PHASE_COLOURS = {
    "I": "#D55E00",
    "II": "#E69F00",
    "III": "#F0E442",
    "IV-A": "#56B4E9",
    "IV-B": "#0072B2",
    "diverged": "#000000",
}
MISSING: dict[str, Any] = {"facecolor": "#ededed", "edgecolor": "#a0a0a0", "hatch": "//////", "linewidth": 0}
CYCLE = ("#0072B2", "#E69F00", "#000000", "#56B4E9", "#D55E00", "#009E73", "#CC79A7")  # neighbours differ in grey too
PHASE_MARKERS = {"I": "v", "II": "s", "III": "D", "IV-A": "^", "IV-B": "o", "diverged": "X"}
MARKERS = ("P", "p", "h", "*", "<", ">", "d")
RULES = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a picture is the same on every machine
    "font.size": NORMAL,
    "axes.labelsize": NORMAL,
    "axes.titlesize": NORMAL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "svg.fonttype": "path",  # letters as outlines: looks the same without our font
    "svg.hashsalt": "weightscape",  # ids of a picture's parts do not change from one save to the next
}
_LOCK = threading.RLock()  # matplotlib's rules are global for as long as a picture is made


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's defaults and our rules, whatever the user's own are, for one thread at a time; then all as before.

    Raises:
        InvalidSpecError: matplotlib, which only an extra installs, is not there.
    """
    try:
        from matplotlib import style
    except ModuleNotFoundError as error:
        raise InvalidSpecError("pictures need matplotlib: pip install weightscape[plot]") from error
    with _LOCK, style.context(["default", RULES]):
        yield


def inches(width: str | float) -> float:
    """Width of a picture.

    Args:
        width: "single" or "double" column, or inches from 2 to 40.

    Raises:
        UnknownNameError, InvalidSpecError: another name, or another size.
    """
    if isinstance(width, str):
        if width not in WIDTHS:
            raise unknown_name("width", width, [*WIDTHS, "inches"])
        return WIDTHS[width]
    if not 2 <= width <= 40:
        raise InvalidSpecError(f"a picture is 2 to 40 inches wide, got {width}")
    return float(width)


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches, whose parts are laid out without overlaps. Call inside `styled`."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=DPI, layout="constrained")


def settled(figure: Any) -> Any:
    """The figure with all parts where they are now: each further layout would move them by a hair."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def halo(width: float = 1.8) -> Sequence[Any]:
    """A white rim around text, readable on every colour."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="white")]


def heading(figure: Any, handles: Sequence[Any] = (), title: str = "") -> None:
    """Title, and below it what marks and colours mean, above everything else."""
    if not handles:
        if title:
            figure.suptitle(title, fontsize=NORMAL)
        return
    figure.legend(
        handles=handles,
        title=title or None,
        title_fontsize=NORMAL,
        loc="outside upper center",
        ncols=legend_columns([handle.get_label() for handle in handles], figure.get_figwidth()),
        handlelength=HANDLE,
        handleheight=1,
        handletextpad=0.5,
        columnspacing=1,
        borderaxespad=0.2,
        borderpad=0.2,
    )


def heading_height(names: Sequence[str], width: float, title: str = "") -> float:
    """Inches to leave for `heading`."""
    lines = -(-len(names) // legend_columns(names, width)) if names else 0
    return 0.16 * lines + 0.07 * bool(lines) + 0.2 * bool(title)


def legend_columns(names: Sequence[str], width: float) -> int:
    """Into how many columns the entries of a legend fit, filled column by column; at least 1.

    >>> legend_columns(["I", "II", "III"], 3.3), legend_columns(["width 4, seeds 0 and 1"] * 5, 3.3)
    (3, 2)
    """
    letter = 0.54 * SMALL / 72
    for columns in range(len(names), 1, -1):
        lines = -(-len(names) // columns)
        parts = [names[first : first + lines] for first in range(0, len(names), lines)]
        room = sum(max(map(len, part)) * letter + (HANDLE + 1.5) * SMALL / 72 for part in parts)
        if room <= width - 0.1:
            return columns
    return 1


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each phase, always the same; other names take those left over, in turn."""
    return _looks(names, PHASE_COLOURS, CYCLE)


def markers(names: Sequence[str]) -> dict[str, str]:
    """A marker for each phase, always the same; other names take others, in turn."""
    return _looks(names, PHASE_MARKERS, MARKERS)


def _looks(names: Sequence[str], known: dict[str, str], more: Sequence[str]) -> dict[str, str]:
    free = [look for look in more if look not in {known.get(name) for name in names}] or list(more)
    others = [name for name in names if name not in known]
    rest = {name: free[place % len(free)] for place, name in enumerate(others)}
    return {name: known.get(name) or rest[name] for name in names}


def save(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a picture: PNG of 300 dots per inch or SVG with outlined letters. All of it, or nothing.

    The same figure gives the same bytes under the same version of matplotlib: no date, no random ids.

    Raises:
        UnknownNameError: another suffix.
        StorageError: the place cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        raise unknown_name("picture format", target.suffix or target.name, FORMATS)
    empty = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
    drawn = io.BytesIO()
    with styled():
        figure.savefig(drawn, format=suffix[1:], dpi=DPI, metadata=empty)
    temporary = target.with_name(f".{target.stem[:64]}-{uuid.uuid4().hex[:8]}{suffix}")
    try:
        with open(temporary, "xb") as file:
            file.write(drawn.getbuffer())
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink()
        raise StorageError(
            f"cannot write the picture {target}: {error.strerror or error}; choose a folder that is there and writable"
        ) from error
    return target
