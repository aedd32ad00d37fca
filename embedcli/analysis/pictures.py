"""Pictures: their names, their frame, and how they are saved. The only place that knows matplotlib."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedcli import files
from embedcli.errors import ConfigurationError, UsageError
from embedcli.store import ownership

# A picture's formats, and the properties of each: the program, by which we know our own pictures, and no date.
_PROPERTIES = {
    ".png": {"Software": "embedcli", "Creation Time": None},
    ".svg": {"Creator": "embedcli", "Date": None},
    ".pdf": {"Creator": "embedcli", "CreationDate": None},
}
FORMATS = tuple(_PROPERTIES)
# Okabe and Ito's colours, told apart by all kinds of colour vision; markers differ besides.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "o^sDvPX"
PANEL = 4.6


def check_name(path: str) -> None:
    """See that a picture can be drawn under the name, before a model is loaded.

    Raises UsageError; OutputError, AccessError where its folder can't take it; ConfigurationError
    without matplotlib.
    """
    if Path(path).suffix not in FORMATS:
        raise UsageError(f"--plot {path}: a picture ends in {', '.join(FORMATS)}")
    ownership.check_replaceable(path, "--plot", ownership.is_picture)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "--plot needs the package matplotlib", "pip install 'embedcli[plot]'"
        ) from None


def new_figure(columns: int, rows: int = 1) -> tuple[Any, Any]:
    """Return a figure and its panels [rows, columns]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL * columns, PANEL * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, paths: Sequence[str]) -> None:
    """Write a figure under each name, in the format that its suffix says. Raises StorageError."""
    import matplotlib

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # all files get the layout that was found
    with matplotlib.rc_context({"svg.hashsalt": "embedcli"}):  # equal pictures, equal bytes
        for path in paths:
            picture, suffix = io.BytesIO(), Path(path).suffix
            figure.savefig(picture, format=suffix[1:], dpi=150, metadata=_PROPERTIES[suffix])
            files.write_atomically(path, picture.getvalue())
