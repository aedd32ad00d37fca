"""The models of this process: encoders of one recipe share one, and take turns at it."""

import os
import sys
import threading
import weakref
from dataclasses import dataclass, field

from embedcli import encoder
from embedcli.config import RunOptions
from embedcli.models.resolve import ResolvedModel
from embedcli.models.spec import ModelSpec
from embedcli.run.texts import check_template


@dataclass(eq=False)
class LoadedModel:
    """A model, and the lock of whoever encodes with it."""

    spec: ModelSpec
    run: RunOptions
    model: encoder.Encoder
    lock: threading.Lock = field(default_factory=threading.Lock)


_lock = threading.Lock()
_models: weakref.WeakSet[LoadedModel] = weakref.WeakSet()
# An engine makes a new encoder for each of its tasks: the model stays from one to the next.
_latest: LoadedModel | None = None


def load(resolved: ResolvedModel, run: RunOptions) -> LoadedModel:
    """Return the model of a spec, loaded once in this process.

    Raises ConfigurationError where it can't be loaded, or the template leaves no room for a text;
    DeviceError.
    """
    global _latest
    with _lock:
        for loaded in _models:
            if (loaded.spec, loaded.run) == (resolved.spec, run):
                break
        else:
            model = encoder.load(resolved.spec, run)
            check_template(resolved.template, model, resolved.spec.max_length)
            loaded = LoadedModel(resolved.spec, run, model)
            _models.add(loaded)
        _latest = loaded
    return loaded


def _forget() -> None:
    """Begin anew in a forked process, where none of the libraries' threads live on, nor CUDA: they
    would be waited for, for ever. So it uses one thread.
    """
    global _lock, _latest
    _lock = threading.Lock()
    _models.clear()
    _latest = None
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


os.register_at_fork(after_in_child=_forget)
