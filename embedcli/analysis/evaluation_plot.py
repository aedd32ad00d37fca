"""Evaluations as a picture: measures with their intervals, recall over k, quality against speed."""

import textwrap
from collections.abc import Sequence
from typing import Any

from embedcli.analysis import pictures
from embedcli.analysis.evaluation import Evaluation
from embedcli.analysis.pictures import COLOURS, MARKERS

# What stands for a run's quality, against its speed.
_QUALITY = "nDCG@10"


def draw(paths: Sequence[str], evaluations: Sequence[Evaluation]) -> None:
    """Draw runs beside one another; of several, their speed and size, too. Raises StorageError."""
    figure, ((*panels,),) = pictures.new_figure(3 if len(evaluations) > 1 else 2)
    _measures(panels[0], evaluations)
    _recall(panels[1], evaluations)
    if len(evaluations) > 1:
        _speed(panels[2], evaluations)
        panels[1].legend(fontsize=8, loc="best", framealpha=0.9)
    first = evaluations[0]
    names = dict.fromkeys(evaluation.model for evaluation in evaluations)
    title = f"{', '.join(names)}: {len(first.ids):,} queries, {first.rows:,} passages"
    figure.suptitle(textwrap.fill(title, 100), fontsize=11)
    pictures.save(figure, paths)


def _short(name: str, width: int) -> str:
    """Return a run's name; of a model of the hub, what stands behind the organization."""
    name = name.rpartition("/")[2]
    return name if len(name) <= width else name[: width - 1] + "…"


def _style(index: int) -> dict[str, str]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _measures(panel: Any, evaluations: Sequence[Evaluation]) -> None:
    """Draw each measure's mean with its interval, a row each."""
    names = list(evaluations[0].values)
    for index, evaluation in enumerate(evaluations):
        estimates = evaluation.estimates()
        # Runs stand under one another around the measure's row.
        shift = (index - (len(evaluations) - 1) / 2) * 0.6 / len(evaluations)
        for row, name in enumerate(names):
            value = estimates[name]
            reach = [[value.mean - value.low], [value.high - value.mean]]
            label = evaluation.name if row == 0 else None
            at = row + shift
            panel.errorbar(
                value.mean, at, xerr=reach, capsize=3, label=label, linestyle="", **_style(index)
            )
            panel.annotate(
                f"{value.mean:.3f}",
                (max(value.high, value.mean), at),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    panel.set_yticks(range(len(names)), names, fontsize=9)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.set_xlim(-0.04, 1.14)
    panel.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    panel.set_xlabel("mean over queries, 95 % interval", fontsize=8)
    panel.set_title("measures", fontsize=10, fontweight="bold")
    panel.grid(axis="x", color="0.9")
    panel.tick_params(labelsize=8)


def _recall(panel: Any, evaluations: Sequence[Evaluation]) -> None:
    for index, evaluation in enumerate(evaluations):
        cutoffs, values = list(evaluation.recall), list(evaluation.recall.values())
        name = _short(evaluation.name, 34)
        panel.plot(cutoffs, values, label=name, markersize=4, **_style(index))
    panel.set_xscale("log")
    panel.set_xticks(cutoffs, [str(cutoff) for cutoff in cutoffs])
    panel.minorticks_off()
    panel.set_ylim(0, 1)
    panel.set_xlabel("k, the passages that are looked at", fontsize=8)
    panel.set_ylabel("share of the relevant passages among them", fontsize=8)
    panel.set_title("recall", fontsize=10, fontweight="bold")
    panel.grid(color="0.9")
    panel.tick_params(labelsize=8)


def _speed(panel: Any, evaluations: Sequence[Evaluation]) -> None:
    """Draw quality against speed; of runs whose vectors were there already, against their size."""
    is_measured = all(evaluation.speed for evaluation in evaluations)
    for index, evaluation in enumerate(evaluations):
        across = evaluation.speed if is_measured else evaluation.bytes / 2**20
        quality = evaluation.estimates()[_QUALITY].mean
        panel.scatter(across, quality, s=40, **_style(index))
        size = f"{evaluation.dim} dim., {evaluation.bytes / 2**20:.1f} MiB"
        name = _short(evaluation.name, 24)
        panel.annotate(
            f"{name}\n{size}",
            (across, quality),
            # Above and below in turns: runs may stand close together.
            xytext=(0, -7 if index % 2 else 7),
            textcoords="offset points",
            ha="center",
            va="top" if index % 2 else "bottom",
            fontsize=7,
        )
    panel.set_xlabel("passages encoded a second" if is_measured else "vectors, MiB", fontsize=8)
    panel.set_ylabel(_QUALITY, fontsize=8)
    panel.set_title(
        "quality and speed" if is_measured else "quality and size", fontsize=10, fontweight="bold"
    )
    if is_measured:
        panel.set_xscale("log")
    panel.margins(0.3)
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, -0.1), min(high, 1.1))
    panel.grid(color="0.9")
    panel.tick_params(labelsize=8)
