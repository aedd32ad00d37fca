"""The report of a run, as JSON for programs that watch it: written whatever the end."""

import contextlib
import json
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import embedcli
from embedcli import console, files, machine, signals
from embedcli.config import STDOUT
from embedcli.errors import EmbedcliError, Ending, Interrupted, OutputError, ending_of

_LIBRARIES = ("accelerate", "openvino", "pyarrow", "ray", "tokenizers", "torch", "transformers")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class Report:
    """A report that is written when its run ends, to each of some paths; `-` is standard output.

    inputs: as they were named, files: as they were found. taken: further files that the run writes;
    none of all these may be the report. guards: what would have ended the run.
    """

    paths: Sequence[str]
    inputs: Sequence[str]
    output: str
    taken: Sequence[str] = ()
    files: Sequence[str] = ()
    guards: Mapping[str, object] = field(default_factory=dict)
    started: str = field(default_factory=_now)
    command: Sequence[str] = field(default_factory=lambda: ["embedcli", *sys.argv[1:]])

    @contextlib.contextmanager
    def of_failure(self) -> Iterator[None]:
        """Write the report if the block raises, with the exit code and the message."""
        try:
            with signals.outrank_errors():
                yield
        except (Exception, Interrupted) as error:
            notes = [str(note) for note in getattr(error, "__notes__", ())]
            # A report that can't be written hides no error.
            with contextlib.suppress(EmbedcliError, OSError):
                self.write(ending_of(error), {"output": self.output, "kept": notes})
            raise

    def write(self, ending: Ending, content: Mapping[str, object]) -> None:
        """Write it. Raises OutputError where a file that is no report has its name, StorageError."""
        from embedcli.store import ownership

        value = {
            ownership.KIND: ownership.REPORT,
            **asdict(ending),
            "started": self.started,
            "ended": _now(),
            "command": list(self.command),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **content,
            "embedcli": embedcli.__version__,
            "python": platform.python_version(),
            "libraries": machine.versions(_LIBRARIES),
            "inputs": list(self.inputs),
            "files": list(self.files),
            "guards": dict(self.guards),
        }
        for path in self.paths:
            if path == STDOUT:
                console.result(json.dumps(value))
                continue
            if self._is_taken(path):
                raise OutputError(f"--report {path}: is taken", "choose another name")
            # Once more: hours may have passed.
            ownership.check_replaceable(path, "--report", ownership.is_report)
            files.write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())

    def _is_taken(self, path: str) -> bool:
        """Tell whether a path is a file of the run, or inside its output: also before places were
        checked, since that may be what failed.
        """
        from embedcli.store import staging

        if files.is_stream(path):
            return False  # messages of several kinds may share a terminal
        names = [name for name in (*self.inputs, self.output, *self.taken) if name]
        folders = [self.output, str(staging.place_of(Path(self.output)))] if self.output else []
        return any(files.are_same(path, name) for name in names) or any(
            files.is_inside(path, folder) for folder in folders
        )
