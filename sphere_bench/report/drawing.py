"""How figures look, and how they become files and parts of a page.

Colours are Okabe and Ito's, which colour-blind readers can distinguish. On a page they are CSS
variables, so that one figure suits light and dark; in PNG and PDF they are the light ones.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import pandas
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sphere_bench.files import atomic_file
from sphere_bench.report.comparing import Setting

INK = "#1c2026"
MUTED = "#8b939e"
BASELINE, SPHERE = "#d55e00", "#0072b2"
# Light to dark twin, lighter so that it stands out from a dark page.
_TWINS = {
    INK: "#e7e9ec",
    MUTED: "#7d8590",
    BASELINE: "#ff9a57",
    SPHERE: "#5cb8f5",
    "#009e73": "#3fd0a5",
    "#cc79a7": "#ea9fc8",
    "#b07800": "#f0bd4f",
    "#6a51a3": "#b3a2e6",
    "#8c564b": "#d2a397",
}
BASELINES = (BASELINE, "#b07800", "#8c564b", "#cc79a7")
SPHERES = (SPHERE, "#009e73", "#6a51a3", "#cc79a7", "#b07800")

# From early to late layers: dark to light on paper, the same order shifted up on a dark page.
_SHADES = 12
_LAYERS = [to_hex(colormaps["viridis"](0.02 + 0.78 * i / (_SHADES - 1))) for i in range(_SHADES)]
_TWINS |= {
    shade: to_hex(colormaps["viridis"](0.42 + 0.58 * i / (_SHADES - 1)))
    for i, shade in enumerate(_LAYERS)
}

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.16,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{part}": INK for part in ("edgecolor", "labelcolor", "titlecolor")},
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "sphere-bench",
    "pdf.fonttype": 42,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


@contextmanager
def style() -> Iterator[None]:
    """Figures made inside look alike."""
    with matplotlib.rc_context(_STYLE):
        yield


@dataclass(frozen=True)
class Drawing:
    """A figure of the report.

    Attributes:
        name: of its files.
        caption: below it.
        alternative: what it shows, for those who cannot see it.
        figure: matplotlib's.
    """

    name: str
    caption: str
    alternative: str
    figure: Figure

    def __post_init__(self) -> None:
        # The layout is half of the work of drawing: once for all files.
        engine = self.figure.get_layout_engine()
        if engine is not None:
            with style():
                engine.execute(self.figure)
            # Not "none", a stand-in for which each file would be drawn twice.
            self.figure.set_layout_engine(None)

    @property
    def svg(self) -> str:
        """An element for a page that defines :func:`theme`'s variables."""
        buffer = io.StringIO()
        with style():
            self.figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
        svg = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
        svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', r"\1", svg, count=1)
        # Identifiers are unique on a page of many figures.
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        svg = re.sub("|".join(_TWINS), lambda found: f"var(--{found[0][1:]}, {found[0]})", svg)
        # The page's own font; the size stays.
        svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
        return svg.strip()

    @property
    def width(self) -> float:
        """In inches."""
        return float(self.figure.get_figwidth())

    def save(self, folder: Path) -> None:
        """Write PNG, for slides, and PDF, for papers, on white."""
        for suffix, options in (
            ("png", {"dpi": 200}),
            ("pdf", {"metadata": {"CreationDate": None}}),
        ):
            with (
                style(),
                atomic_file(folder / f"{self.name}.{suffix}") as temporary,
            ):
                self.figure.savefig(temporary, format=suffix, facecolor="white", **options)


def theme() -> Mapping[str, str]:
    """CSS variable to its colour on a dark page; on a light one each is its own name."""
    return {f"--{light[1:]}": dark for light, dark in _TWINS.items()}


def panels(
    rows: int, columns: int, height: float, *, width: float = 9.0, **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of ``rows`` x ``columns`` panels, each row ``height`` inches high."""
    figure = Figure(figsize=(width, rows * height + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in grid]


def layer_colors(layers: Sequence[int]) -> dict[int, str]:
    """A shade for each layer, spread over the whole range."""
    last = max(len(layers) - 1, 1)
    return {
        layer: _LAYERS[round(index * (_SHADES - 1) / last)] for index, layer in enumerate(layers)
    }


def legend(figure: Figure, axes: Axes) -> None:
    """One legend above all panels, of what one of them shows."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 0:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6))


@dataclass(frozen=True)
class Look:
    """How the arms of a variant are drawn throughout a setting."""

    color: str
    linestyle: str


def looks(setting: Setting) -> dict[str, Look]:
    """Variant to its look: dashed and warm without SPHERE, solid with it."""
    enabled = {arm.variant: arm.enabled for arm in setting.arms}
    without = [variant for variant in setting.variants if not enabled[variant]]
    with_sphere = [variant for variant in setting.variants if enabled[variant]]
    return {
        **{each: Look(color, "--") for each, color in zip(without, cycle(BASELINES), strict=False)},
        **{
            each: Look(color, "-") for each, color in zip(with_sphere, cycle(SPHERES), strict=False)
        },
    }


def draw_runs(
    axes: Axes, runs: Sequence["pandas.Series[float]"], look: Look, **options: Any
) -> None:
    """The mean of the runs' series, by edits, in a band from the lowest run to the highest.

    Runs without a value are left out; with none left nothing is drawn.
    """
    runs = [run for run in runs if len(run)]
    if not runs:
        return
    table = pandas.concat(runs, axis=1).astype(float).sort_index().dropna(how="all")
    marker = "o" if len(table) <= 25 else ""
    axes.plot(
        table.index,
        table.mean(axis=1),
        color=look.color,
        linestyle=look.linestyle,
        marker=marker,
        **options,
    )
    if table.shape[1] > 1:
        low, high = table.min(axis=1), table.max(axis=1)
        axes.fill_between(table.index, low, high, color=look.color, alpha=0.16, linewidth=0)
