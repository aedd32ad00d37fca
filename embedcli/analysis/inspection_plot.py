"""A file of vectors as a picture: lengths of its texts, truncation, norms."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedcli.analysis import pictures
from embedcli.analysis.inspection import Inspection
from embedcli.analysis.pictures import COLOURS

_BINS = 40


def draw(paths: Sequence[str], inspection: Inspection) -> None:
    """Draw histograms of a file's tokens, where it has them, and norms. Raises StorageError."""
    counts = inspection.token_counts
    has_tokens = counts is not None and len(counts) > 0
    figure, ((*panels,),) = pictures.new_figure(2 if has_tokens else 1)
    if has_tokens:
        _tokens(panels[0], inspection, counts)
    _norms(panels[-1], inspection)
    made = inspection.made
    model = f", {made.recipe.space.model}" if made is not None else ""
    figure.suptitle(f"{inspection.file}: {inspection.rows:,} rows{model}", fontsize=11)
    pictures.save(figure, paths)


def _tokens(panel: Any, inspection: Inspection, counts: Any) -> None:
    panel.hist(counts, bins=_bins(counts), color=COLOURS[0])
    made = inspection.made
    if made is not None:
        limit = made.recipe.max_length
        if counts.max() > limit / 2:  # else the texts would be squeezed into a corner
            panel.axvline(limit, color=COLOURS[1], linestyle="--")
            panel.annotate(
                f"limit: {limit:,}",
                (limit, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-3, -10),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=COLOURS[1],
            )
    truncated = inspection.truncated or 0
    share = truncated / max(1, inspection.rows)
    panel.set_xlabel(
        f"tokens of a text, template included\ntruncated: {truncated:,} rows ({share:.1%})",
        fontsize=8,
    )
    panel.set_ylabel("rows", fontsize=8)
    panel.set_title("lengths", fontsize=10, fontweight="bold")
    panel.tick_params(labelsize=8)


def _bins(counts: Any) -> Any:
    """Return edges of bins that hold as many whole numbers each."""
    low, high = int(counts.min()), int(counts.max())
    width = max(1, -(-(high - low + 1) // _BINS))
    return np.arange(low, high + width + 1, width) - 0.5


def _norms(panel: Any, inspection: Inspection) -> None:
    norms = inspection.norms[np.isfinite(inspection.norms)]
    # All norms of normalized vectors are 1 but for rounding, which would fill the picture.
    spread = max(float(np.ptp(norms)) if len(norms) else 0.0, 1e-3)
    middle = float(np.median(norms)) if len(norms) else 1.0
    edges = np.linspace(middle - spread, middle + spread, _BINS + 1)
    panel.hist(norms, bins=edges, color=COLOURS[0])
    bad = {
        "non-finite": inspection.non_finite,
        "zero": inspection.zero,
        "missing": inspection.missing,
    }
    told = ", ".join(f"{count:,} {name}" for name, count in bad.items() if count)
    panel.set_xlabel(f"norm of a vector\n{told or 'all finite, none zero'}", fontsize=8)
    panel.set_ylabel("rows", fontsize=8)
    panel.set_title("norms", fontsize=10, fontweight="bold")
    panel.locator_params(axis="x", nbins=4)
    panel.tick_params(labelsize=8)
