"""Contact sheets: a video's scenes as one PNG, keyframes under the curve that divided them.

    contact_sheet(Path("film.png"), [(segment, pixels, "a red room")], curve, title="film.mp4")

It only draws; ``perception/scenetilling.py`` finds the scenes.
"""

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streammem.errors import BackboneError, install_command
from streammem.output.results import naming
from streammem.types import Segment, clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A scene, its picture [H, W, 3] uint8 RGB, and its caption, if it has one.
Keyframe = tuple[Segment, np.ndarray, str | None]

MAX_SCENES = 60  # of more scenes, an even selection: a longer page is not readable
MAX_CAPTION_LINES = 4

# Lengths are in inches; at 100 dots an inch the page is 1200 pixels wide.
DPI = 100
PAGE_WIDTH = 12.0
MARGIN = 0.3
GAP = 0.18
HEADER_HEIGHT = 0.34
SIMILARITY_HEIGHT = 0.95
DEPTH_HEIGHT = 0.75
STRIP_HEIGHT = 0.2
PLOT_HEIGHT = SIMILARITY_HEIGHT + DEPTH_HEIGHT + STRIP_HEIGHT + 0.65  # with ticks and air
PLOT_LEFT = MARGIN + 0.6
TIME_HEIGHT = 0.22
LINE_HEIGHT = 0.185
PICTURE_SHAPES = (0.4, 1.2)  # least and greatest height over width

TITLE_SIZE, TIME_SIZE, CAPTION_SIZE, SMALL_SIZE = 13, 10, 9.5, 8.5  # points
INK, GREY, FAINT = "#1f2430", "#7b8294", "#d9dce3"
SIMILARITY, DEPTH, BOUNDARY = "#2a6f97", "#d97706", "#c1121f"
STRIP = ("#2a6f97", "#7fa8c0")  # neighbouring scenes differ

TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
MAX_TICKS = 14


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The curve that divided the video.

    Attributes:
        times: [T] seconds, rising.
        similarity: [T] of each frame with the one before, in [-1, 1]; NaN where unknown.
        depth: [T] depth scores, >= 0; NaN where unknown.
        boundaries: seconds at which a new scene begins.
        threshold: depth that a boundary must reach: one, or [T] where it varies.
    """

    times: np.ndarray
    similarity: np.ndarray
    depth: np.ndarray
    boundaries: Sequence[float] = ()
    threshold: float | np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Cell:
    """A scene with its place in the video, from 1, and its caption in lines."""

    number: int
    segment: Segment
    pixels: np.ndarray
    lines: list[str]


@dataclass(frozen=True, slots=True)
class _Page:
    """A figure that is laid out in inches from its top left corner."""

    figure: "Figure"
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        bottom = (self.height - top - height) / self.height
        box = (left / PAGE_WIDTH, bottom, width / PAGE_WIDTH, height / self.height)
        axes = self.figure.add_axes(box)
        axes.tick_params(length=0, labelsize=SMALL_SIZE, labelcolor=GREY)
        axes.spines[:].set_visible(False)
        return axes

    def text(self, left: float, top: float, text: str, size: float, **style: Any) -> None:
        where = (left / PAGE_WIDTH, 1 - top / self.height)
        # A caption's dollar signs are dollars, not mathematics.
        self.figure.text(*where, text, fontsize=size, va="top", parse_math=False, **style)


def contact_sheet(
    path: Path,
    keyframes: Sequence[Keyframe],
    curve: Curve | None = None,
    *,
    title: str = "",
) -> None:
    """Write a PNG, 1200 pixels wide, of a video's scenes in time order.

    Args:
        path: file to write, replaced if it exists.
        keyframes: at least one, in any order; an even selection of more than ``MAX_SCENES``.
        curve: drawn above the keyframes.
        title: at the top, usually the source's name.

    Raises:
        ValueError: no keyframes, or a curve whose arrays differ in length.
        OSError: the file cannot be written.
        BackboneError: matplotlib is not installed.
    """
    if not keyframes:
        raise ValueError("a contact sheet needs at least one keyframe")
    if curve is not None and not len(curve.times) == len(curve.similarity) == len(curve.depth):
        raise ValueError("times, similarity and depth of a curve must be equally long")
    if curve is not None and not len(curve.times):
        curve = None  # a source of a single frame has no neighbours to compare
    try:
        from matplotlib import style
    except ImportError as error:
        hint = install_command("train")
        raise BackboneError(f"a contact sheet needs matplotlib; run: {hint}") from error

    with style.context("default"), warnings.catch_warnings():
        # The font lacks some scripts; without this there is a warning for every letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = _draw_sheet(keyframes, curve, title)
        with naming(Path(path)):
            figure.savefig(path, format="png", metadata={"Software": None})


def _draw_sheet(keyframes: Sequence[Keyframe], curve: Curve | None, title: str) -> "Figure":
    from matplotlib.figure import Figure

    scenes = sorted(keyframes, key=lambda keyframe: keyframe[0].start)
    kept = np.linspace(0, len(scenes) - 1, min(len(scenes), MAX_SCENES)).round().astype(int)
    columns = _num_columns(len(kept))
    width = (PAGE_WIDTH - 2 * MARGIN - GAP * (columns - 1)) / columns
    cells = [_cell(int(n), scenes[n], width) for n in kept]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    picture_height = width * _picture_shape(cells)
    row_heights = [_row_height(row, picture_height) for row in rows]

    top = MARGIN + HEADER_HEIGHT + (0 if curve is None else PLOT_HEIGHT)
    height = top + sum(row_heights) + MARGIN - GAP
    # A figure of its own, not pyplot's: no global state, and Agg draws without a screen.
    page = _Page(Figure(figsize=(PAGE_WIDTH, height), dpi=DPI, facecolor="white"), height)
    segments = [segment for segment, _, _ in scenes]
    _draw_header(page, title, segments, len(cells))
    if curve is not None:
        _draw_plot(page, MARGIN + HEADER_HEIGHT, curve, segments)
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, cell in enumerate(row):
            _draw_cell(page, MARGIN + column * (width + GAP), top, cell, (width, picture_height))
        top += row_height
    return page.figure


def _num_columns(num_scenes: int) -> int:
    if num_scenes <= 3:
        return 3
    return min((4, 5), key=lambda columns: -num_scenes % columns)  # fewest empty places


def _cell(index: int, keyframe: Keyframe, width: float) -> _Cell:
    segment, pixels, caption = keyframe
    return _Cell(index + 1, segment, pixels, _wrapped(caption or "", width))


def _picture_shape(cells: Sequence[_Cell]) -> float:
    tallest = max(cell.pixels.shape[0] / cell.pixels.shape[1] for cell in cells)
    return min(max(tallest, PICTURE_SHAPES[0]), PICTURE_SHAPES[1])


def _row_height(row: Sequence[_Cell], picture_height: float) -> float:
    lines = max(len(cell.lines) for cell in row)
    return picture_height + TIME_HEIGHT + lines * LINE_HEIGHT + 1.5 * GAP


def _wrapped(text: str, width: float) -> list[str]:
    """Break into lines of ``width`` inches by the text's own mean width of a letter."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    text = " ".join(text.split())
    if not text:
        return []
    font = FontProperties(size=CAPTION_SIZE)
    points, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    # One letter in twelve stays in reserve, for a line of wider letters than the mean.
    letters = int(len(text) * width / (points / 72) * 11 / 12)
    if letters >= len(text):
        return [text]
    return textwrap.wrap(text, max(letters, 8), max_lines=MAX_CAPTION_LINES, placeholder=" …")


def _draw_header(page: _Page, title: str, segments: Sequence[Segment], num_shown: int) -> None:
    count = f"{len(segments)} scene{'s' if len(segments) > 1 else ''}"
    if num_shown < len(segments):
        count = f"{num_shown} of {count}"
    page.text(MARGIN, MARGIN - 0.1, title, TITLE_SIZE, color=INK, weight="bold")
    length = clock(segments[-1].end - segments[0].start)
    right = PAGE_WIDTH - MARGIN
    page.text(right, MARGIN - 0.07, f"{count}, {length}", TIME_SIZE, color=GREY, ha="right")


def _draw_plot(page: _Page, top: float, curve: Curve, segments: Sequence[Segment]) -> None:
    """Similarity above, depth below it, and a strip of the scenes on the same time axis."""
    similarity, depth, strip = (
        page.axes(left, top + offset, PAGE_WIDTH - left - MARGIN, height)
        for left, offset, height in (
            (PLOT_LEFT, 0.0, SIMILARITY_HEIGHT),
            (PLOT_LEFT, SIMILARITY_HEIGHT + 0.08, DEPTH_HEIGHT),
            (PLOT_LEFT, SIMILARITY_HEIGHT + DEPTH_HEIGHT + 0.14, STRIP_HEIGHT),
        )
    )
    similarity.plot(curve.times, curve.similarity, color=SIMILARITY, linewidth=1.4)
    depth.fill_between(curve.times, 0, curve.depth, color=DEPTH, alpha=0.25, linewidth=0)
    depth.plot(curve.times, curve.depth, color=DEPTH, linewidth=1.4)
    if curve.threshold is not None:
        threshold = np.broadcast_to(curve.threshold, np.shape(curve.times))
        depth.plot(curve.times, threshold, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        edge = depth.get_yaxis_transform()  # x in parts of the width, y in depths
        depth.text(
            1,
            threshold[-1],
            "threshold ",
            transform=edge,
            color=GREY,
            fontsize=SMALL_SIZE,
            ha="right",
            va="bottom",
        )
    similarity.set_ylim(top=1.05)
    depth.set_ylim(bottom=0)
    names = ((similarity, "similarity", SIMILARITY), (depth, "depth", DEPTH))
    for axes, name, color in names:
        axes.set_ylabel(name, color=color, fontsize=TIME_SIZE)
        axes.yaxis.set_label_coords(-0.035, 0.5)
        axes.locator_params(axis="y", nbins=3)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xticks([])
        for time in curve.boundaries:
            axes.axvline(time, color=BOUNDARY, linewidth=0.9, alpha=0.75)
    _draw_strip(strip, segments)
    for axes in (similarity, depth, strip):
        axes.set_xlim(segments[0].start, segments[-1].end)


def _draw_strip(axes: "Axes", segments: Sequence[Segment]) -> None:
    """Bars of the scenes in turn of colour, numbered where there is room, over the time axis."""
    first, last = segments[0].start, segments[-1].end
    letter = 0.085 * (last - first) / (PAGE_WIDTH - PLOT_LEFT - MARGIN)  # seconds that one covers
    for number, segment in enumerate(segments, start=1):
        length = segment.end - segment.start
        axes.barh(0, length, left=segment.start, height=1, color=STRIP[number % 2])
        if length > letter * (len(str(number)) + 1):
            middle = segment.start + length / 2
            axes.text(
                middle, 0, str(number), color="white", fontsize=SMALL_SIZE, ha="center", va="center"
            )
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([])
    step = next((s for s in TICK_STEPS_S if (last - first) / s <= MAX_TICKS), TICK_STEPS_S[-1])
    ticks = np.arange(np.ceil(first / step), np.floor(last / step) + 1) * step
    axes.set_xticks(ticks, [clock(tick).removesuffix(".0") for tick in ticks])


def _draw_cell(
    page: _Page, left: float, top: float, cell: _Cell, size: tuple[float, float]
) -> None:
    """Picture, number and times, caption; ``size`` is the picture's place, width and height."""
    picture = page.axes(left, top, *size)
    picture.imshow(cell.pixels, interpolation="hanning")
    picture.set(xticks=[], yticks=[], anchor="SW")
    top += size[1] + 0.07
    page.text(left, top, str(cell.number), TIME_SIZE, color=SIMILARITY, weight="bold")
    times = f"{clock(cell.segment.start)}-{clock(cell.segment.end)}"
    page.text(left + 0.1 * len(str(cell.number)) + 0.1, top, times, TIME_SIZE, color=GREY)
    top += TIME_HEIGHT
    for line in cell.lines:
        page.text(left, top, line, CAPTION_SIZE, color=INK)
        top += LINE_HEIGHT
