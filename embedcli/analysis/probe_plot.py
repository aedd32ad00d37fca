"""Views of a probe as a picture."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedcli.analysis import pictures
from embedcli.analysis.pictures import COLOURS, MARKERS
from embedcli.analysis.probe import Probed, View

_MOST_IN_TABLE = 16
_MOST_NAMED = 30


def draw(paths: Sequence[str], probed: Probed, views: Sequence[View], model: str) -> None:
    """Draw a column for each view: the table of cosines where it is small, and the projection.

    Raises StorageError.
    """
    tables = len(probed.texts) <= _MOST_IN_TABLE and not probed.pairs
    rows = 2 if tables else 1
    figure, panels = pictures.new_figure(len(views), rows)
    widest = max(float(np.abs(view.points[:, 0]).max()) for view in views)
    for column, view in enumerate(views):
        heading = textwrap.fill(view.name if column == 0 else f"“{view.name}”", 44)
        panels[0][column].set_title(heading, fontsize=10, fontweight="bold")
        if tables:
            _table(panels[0][column], probed, view)
        _projection(panels[-1][column], probed, view, widest)
    if probed.labels:
        panels[-1][0].legend(fontsize=8, loc="best", framealpha=0.9)
    _same_scale(panels[-1])
    figure.suptitle(f"{model}: {len(probed.texts)} texts", fontsize=11)
    pictures.save(figure, paths)


def _table(panel: Any, probed: Probed, view: View) -> None:
    """Draw cosines as numbers on shades of one colour."""
    panel.imshow(view.cosines, vmin=0, vmax=1, cmap="Blues")
    names = [textwrap.shorten(text, 18, placeholder="…") for text in probed.texts]
    panel.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    size = 9 if len(names) <= 8 else 6
    for (row, column), value in np.ndenumerate(view.cosines):
        shade = "white" if value > 0.6 else "black"
        panel.text(
            column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color=shade
        )
    panel.set_xlabel("cosine", fontsize=8)


def _projection(panel: Any, probed: Probed, view: View, widest: float) -> None:
    """Draw each text as a point, those that mean the same joined by a line."""
    for pair in probed.pairs:
        panel.plot(*view.points[list(pair)].T, color="0.75", linewidth=0.7, zorder=1)
    _draw_points(panel, probed, view)
    if len(probed.texts) <= _MOST_NAMED and not probed.pairs:
        _name_points(panel, probed, view, widest)
    panel.axhline(0, color="0.9", linewidth=0.6, zorder=0)
    panel.axvline(0, color="0.9", linewidth=0.6, zorder=0)
    horizontal, vertical = view.shares
    caption = _caption(probed, view)
    panel.set_xlabel(f"direction 1: {horizontal:.0%} of the variance\n{caption}", fontsize=8)
    panel.set_ylabel(f"direction 2: {vertical:.0%} of the variance", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.margins(0.15)


def _draw_points(panel: Any, probed: Probed, view: View) -> None:
    labels = np.array(probed.labels or ["text"] * len(probed.texts))
    for index, label in enumerate(dict.fromkeys(labels.tolist())):
        panel.scatter(
            *view.points[labels == label].T,
            label=textwrap.shorten(label, 30),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            s=22,
            alpha=0.85,
            linewidths=0,
        )


def _name_points(panel: Any, probed: Probed, view: View, widest: float) -> None:
    for text, point in zip(probed.texts, view.points, strict=True):
        name = textwrap.shorten(text, 24, placeholder="…")
        # Towards the middle: beyond the frame names would be cut.
        side, step = ("right", -5) if point[0] > widest / 2 else ("left", 5)
        panel.annotate(
            name, point, xytext=(step, 4), textcoords="offset points", fontsize=8, ha=side
        )


def _caption(probed: Probed, view: View) -> str:
    """Say what the picture alone doesn't show."""
    phrases = [f"moved by {view.moved.mean():.2f} on average"] if view.moved.any() else []
    if view.partners is not None:
        first_label, second_label = dict.fromkeys(probed.labels)
        there, back = view.partners
        ways = f"{first_label} to {second_label} {there:.0%}, {second_label} to {first_label} {back:.0%}"
        phrases.append(f"nearest is the partner: {ways}")
    if view.same_label is not None and view.partners is None:
        phrases.append(f"nearest has the same label: {view.same_label:.0%}")
    return "; ".join(phrases)


def _same_scale(panels: Sequence[Any]) -> None:
    """Give all panels one scale, so that distances compare."""
    for limits, set_limits in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        limits_of_panels = [getattr(panel, limits)() for panel in panels]
        low, high = (
            min(limit[0] for limit in limits_of_panels),
            max(limit[1] for limit in limits_of_panels),
        )
        for panel in panels:
            getattr(panel, set_limits)(low, high)
