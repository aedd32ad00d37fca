"""Loading the model so that all processes of a run compute alike: by the backend, in the
dtype, and compiled or not, of whoever loaded it first.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import msgspec

from embedcli import encoder
from embedcli.config import Backend, RunOptions
from embedcli.errors import ConfigurationError
from embedcli.files import make_exclusively
from embedcli.run.job import Job
from embedcli.run.texts import check_template
from embedcli.store.staging import Staging

_NAME = "computation.json"


@dataclass(frozen=True)
class _Agreement:
    """What must be the same in all processes, so that it doesn't matter who does which unit."""

    backend: str
    dtype: str
    compiled: bool

    @classmethod
    def of(cls, model: encoder.Encoder) -> "_Agreement":
        """Return how a loaded model computes."""
        here = model.computation
        return cls(here.backend, here.dtype, here.compiled)

    def asked_for(self, options: RunOptions) -> RunOptions:
        """Return the options that ask for it."""
        wanted = {"dtype": self.dtype, "compile": "on" if self.compiled else "off"}
        if self.backend in get_args(Backend):
            wanted["backend"] = self.backend
        return msgspec.convert({**asdict(options), **wanted}, RunOptions)

    def __str__(self) -> str:
        return f"{self.dtype} by {self.backend}{', compiled' if self.compiled else ''}"


def load_model(
    job: Job, stage: Staging, device: str, expected_tokens: int | None = None
) -> encoder.Encoder:
    """Load the model as the others of the run have, or as it suits this device where it is the first;
    and see that the template leaves room for a text.

    `expected_tokens`: about how many will be encoded, if that is known. Raises ConfigurationError
    (also where this machine can't compute as the others do), DeviceError.
    """
    options = replace(job.run, device=device)
    if options.expected_tokens is None:
        options = replace(options, expected_tokens=expected_tokens)
    agreed = _read(stage)
    model = _load(job, options, agreed)
    if agreed is None:
        agreed = _agree(stage, _Agreement.of(model))
        if agreed != _Agreement.of(model):  # another was first
            del model
            model = _load(job, options, agreed)
    check_template(job.template, model, job.spec.max_length)
    return model


def _load(job: Job, options: RunOptions, agreed: _Agreement | None) -> encoder.Encoder:
    if agreed is None:
        return encoder.load(job.spec, options)
    if agreed.backend == "openvino" and job.run.device == "auto":
        options = replace(options, device="cpu")  # also where this machine has GPUs
    try:
        model = encoder.load(job.spec, agreed.asked_for(options))
    except ConfigurationError as error:
        raise ConfigurationError(
            f"others of this run compute in {agreed}, this machine can't: {error.message}",
            "repeat the run with a --backend, --dtype and --compile that all machines can do",
        ) from None
    here = _Agreement.of(model)
    if here != agreed:
        raise ConfigurationError(
            f"this machine computes in {here}, others of this run in {agreed}",
            "repeat the run with a --backend, --dtype and --compile that all machines can do",
        )
    return model


def _agree(stage: Staging, agreement: _Agreement) -> _Agreement:
    """Say how this process computes; return how the first that said so does."""
    make_exclusively(_file(stage), json.dumps(asdict(agreement)).encode())
    return _read(stage) or agreement


def _read(stage: Staging) -> _Agreement | None:
    try:
        return msgspec.json.decode(_file(stage).read_bytes(), type=_Agreement)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _file(stage: Staging) -> Path:
    return stage.run / _NAME
