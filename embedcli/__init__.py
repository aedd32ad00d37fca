"""embedcli: text columns into normalized vectors, with the template that the model was trained with.

encoder = embedcli.Encoder("intfloat/e5-base-v2", role="passage")
encoder.encode(["tides follow the moon"])      # float32 [1, dim]
encoder.embed(table, "text")                   # an Arrow table with vectors and their provenance
embedcli.encode("corpus.jsonl", role="passage", output="out.parquet", update=True)
embedcli.open("out.parquet").search(["what moves the tides?"])
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name comes from: loaded when it is asked for, so that `embedcli --help` loads none.
_PLACES = {
    "Encoder": "embedcli.api.encoder",
    "Vectors": "embedcli.api.vectors",
    "Hit": "embedcli.analysis.search",
    "Recipe": "embedcli.recipe",
    "Summary": "embedcli.run",
    "EmbedcliError": "embedcli.errors",
    "encode": "embedcli.api.verbs",
    "open": "embedcli.api.verbs",
    "search": "embedcli.api.verbs",
}
__all__ = ["__version__", *_PLACES]

if TYPE_CHECKING:
    from embedcli.analysis.search import Hit as Hit
    from embedcli.api.encoder import Encoder as Encoder
    from embedcli.api.vectors import Vectors as Vectors
    from embedcli.api.verbs import encode as encode
    from embedcli.api.verbs import open as open  # noqa: A004 - embedcli.open
    from embedcli.api.verbs import search as search
    from embedcli.errors import EmbedcliError as EmbedcliError
    from embedcli.recipe import Recipe as Recipe
    from embedcli.run import Summary as Summary


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'embedcli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
