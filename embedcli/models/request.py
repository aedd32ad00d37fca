"""What people ask for of a model and its template."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelRequest:
    """The options that choose a model and a template; None leaves it to the model.

    Units as in `encode`'s options.
    """

    model: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    template: str | None = None
    task: str | None = None
    max_length: int | None = None
    dim: int | None = None
    normalize: bool | None = None


# Nothing is asked for: all is the model's own.
NO_REQUEST = ModelRequest()
