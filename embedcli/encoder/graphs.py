"""An OpenVINO graph that is ready to run: several batches at once, each by as many threads.

So a batch's numbers don't depend on how many cores or processes there are.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino

from embedcli.encoder.batching import PaddedBatch, Rows
from embedcli.encoder.conversion import NotConvertedError
from embedcli.errors import DeviceError

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class Graph:
    """A graph compiled for CPUs."""

    def __init__(self, path: Path, dtype: str, streams: int, threads: int) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(streams * threads),
        }
        with _errors_named():
            self._compiled = openvino.Core().compile_model(path, "CPU", settings)
            self._queue = openvino.AsyncInferQueue(self._compiled, streams)

    def vectors_of(self, batch: PaddedBatch) -> npt.NDArray[np.float32]:
        """Return the full vectors of one batch, float32 [n, full_dim]."""
        with _errors_named():
            vectors: npt.NDArray[np.float32] = self._compiled(arrays(batch))[0]
        return vectors

    def run(
        self, batches: Iterable[tuple[Rows, PaddedBatch]]
    ) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
        """Yield the rows and full vectors of each batch, in the order in which they are ready."""
        ready: list[tuple[Rows, npt.NDArray[np.float32]]] = []

        def keep(request: Any, rows: Rows) -> None:
            ready.append((rows, request.get_output_tensor().data.copy()))

        self._queue.set_callback(keep)
        with _errors_named():
            for rows, batch in batches:
                self._queue.start_async(arrays(batch), rows)
                while ready:
                    yield ready.pop()
            self._queue.wait_all()
        yield from ready


@contextlib.contextmanager
def _errors_named() -> Iterator[None]:
    """Raise OpenVINO's errors as DeviceError where it has too little memory, else as
    NotConvertedError.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        if "memory" in reason or "alloc" in reason:
            raise DeviceError(
                f"OpenVINO has too little memory: {reason}", "--backend torch"
            ) from None
        raise NotConvertedError(f"OpenVINO can't run it: {reason}", "--backend torch") from None


def arrays(batch: PaddedBatch) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the inputs of a graph in their order."""
    return batch.ids, batch.mask, batch.ranks
