"""The backend `torch`: models of transformers. Settles the environment before torch is imported."""

import gc
import sys

from embedcli.config import RunOptions
from embedcli.encoder import environment
from embedcli.encoder.api import Encoder
from embedcli.encoder.choice import Choice
from embedcli.models.spec import ModelSpec
from embedcli.records import Rendered


def load(spec: ModelSpec, options: RunOptions, choice: Choice | None = None) -> Encoder:
    """Load a model onto its device. Raises ConfigurationError, DeviceError."""
    environment.prepare()
    from embedcli.encoder.forward import TorchEncoder
    from embedcli.encoder.loading import load_model

    return TorchEncoder(load_model(spec, options, choice))


def release() -> None:
    """Give the device's memory back that torch keeps for later, if torch was ever needed."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def count_tokens(spec: ModelSpec, rendered: Rendered) -> list[int]:
    """Count the tokens that the model would see of each text."""
    return [len(ids) for ids in token_ids(spec, rendered)]


def token_ids(spec: ModelSpec, rendered: Rendered) -> list[list[int]]:
    """Return the ids that the model gets for each text, special ones included."""
    environment.prepare()
    from embedcli.encoder.loading import load_tokenizer

    return load_tokenizer(spec).encode(rendered).as_lists()
