"""The report of a run, as JSON for programs that watch it: written also when the run fails."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import embedcli
from embedcli import files
from embedcli.errors import EmbedcliError, Ending, Interrupted, ending_of


class Report:
    """A report that is written when its run ends; without a path there is none."""

    def __init__(self, path: str | None, inputs: Sequence[str], output: str) -> None:
        self._path = path
        self._started = _now()
        # What is known of a run that fails before it has a summary.
        self._head = {
            "embedcli": embedcli.__version__,
            "inputs": list(inputs),
            "output": output,
        }

    @contextlib.contextmanager
    def of_failure(self) -> Iterator[None]:
        """Write the report if the block raises, with the exit code and the message."""
        try:
            yield
        except (Exception, Interrupted) as error:
            # A report that can't be written hides no error.
            with contextlib.suppress(EmbedcliError, OSError):
                self.write(ending_of(error), self._head)
            raise

    def write(self, ending: Ending, content: Mapping[str, object]) -> None:
        """Write the file. Raises OutputError where a file that is no report has its name, StorageError."""
        if self._path is None:
            return
        from embedcli.store import ownership

        # Once more: hours may have passed.
        ownership.check_replaceable(self._path, "--report", ownership.is_report)
        times = {"started": self._started, "ended": _now()}
        marked = {ownership.KIND: ownership.REPORT, **asdict(ending), **times, **content}
        files.write_atomically(self._path, (json.dumps(marked, indent=2) + "\n").encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
