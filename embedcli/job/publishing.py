"""What became of all units: sent while they come in, counted, accounted for, published."""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from embedcli import sources
from embedcli.config import STDOUT
from embedcli.errors import DataError
from embedcli.job import planning, provenance
from embedcli.job.draft import Draft, Result
from embedcli.job.summary import Summary, Watcher
from embedcli.job.unit import Workshop
from embedcli.records import Reject
from embedcli.store import describe, parts, publish, reuse, streams
from embedcli.store.claims import Board


class Outcome:
    """The results of a run's units. With a stream, each is sent as soon as all before it are there."""

    def __init__(self, shop: Workshop, watcher: Watcher, summary: Summary, stdout: BinaryIO | None) -> None:
        self.shop, self.summary = shop, summary
        # A unit may be blank lines alone.
        self.units = [index for index, unit in enumerate(shop.corpus.units) if unit.rows]
        self._watcher, self._board, self._shelf = watcher, Board(shop.stage, "publisher"), reuse.Shelf()
        self._stdout, self._sent = stdout, 0
        self._stream: streams.Stream | None = None
        self._shown_rows = self._shown_tokens = 0
        self._warned = False
        self._done: dict[int, Result] = {}

    def look_at(self, draft: Draft) -> None:
        """Warn of what should be seen early."""
        if draft.result.counts.prefixed and not self._warned:
            prefix = self.shop.job.template.prefix.strip()
            self._watcher.warn(f"texts start with {prefix!r} already, which the template puts before them once more")
            self._warned = True

    def advance(self, rows: int, tokens: int) -> None:
        """Tell the watcher what this process has done itself."""
        self._shown_rows, self._shown_tokens = self._shown_rows + rows, self._shown_tokens + tokens
        self._watcher.advance(rows, tokens)

    def show(self) -> None:
        """Tell the watcher how far all workers together are, and send what is ready."""
        self._take_new()
        beats = [beat for beat in self._board.beats() if beat.unit is not None and beat.unit not in self._done]
        rows = sum(result.counts.rows_in for result in self._done.values()) + sum(beat.rows for beat in beats)
        tokens = sum(result.counts.encoded_tokens for result in self._done.values())
        tokens += sum(beat.tokens for beat in beats)
        # A worker that dies takes the rows of its unit back; a bar doesn't go back.
        self.advance(max(0, rows - self._shown_rows), max(0, tokens - self._shown_tokens))
        self.send_ready()

    def send_ready(self) -> None:
        """Send the units whose turn it is."""
        if self.shop.job.output.path != STDOUT:
            return
        while self._sent < len(self.units) and self._board.is_done(self.units[self._sent]):
            self._send(self.units[self._sent])
            self._sent += 1

    def _take_new(self) -> None:
        for index in self._board.done() - set(self._done):
            self._done[index] = Result.of(self._board.result(index))

    def _send(self, index: int) -> None:
        result, part = Result.of(self._board.result(index)), self.shop.stage.part(index)
        if result.rows:
            stream = self._open_stream(result.made)
            for table in parts.read_tables(part):
                stream.write(table)
        part.unlink()

    def _open_stream(self, made: list[provenance.Made]) -> streams.Stream:
        """The stream starts with its metadata, before there is anything to count."""
        if self._stream is None:
            assert self._stdout is not None
            said = provenance.of_part(self.shop.job, made)
            self._stream = streams.STREAMS[self.shop.job.output.format](self._stdout, self.shop.schema, said)
        return self._stream

    def publish(self) -> None:
        """Account for all rows and make the output visible. Raises DataError where a row is lost, StorageError."""
        self._take_new()
        results = [self._done[index] for index in self.units]
        summary, counts, job = self.summary, self.summary.counts, self.shop.job
        counts.rows_in = 0
        for result in results:
            counts.add(result.counts)
            for stage, seconds in result.seconds.items():
                summary.seconds[stage] = summary.seconds.get(stage, 0.0) + seconds
        made = provenance.joined(one for result in results for one in result.made)
        summary.device, summary.dtype = (
            ", ".join(sorted({getattr(one, n) for one in made})) for n in ("device", "dtype")
        )
        summary.compiled = any(one.compiled for one in made)
        summary.example = next((result.example for result in results if result.example), "")
        lost = self.shop.corpus.rows - counts.rows_out - counts.rejected
        if lost or counts.rows_in != self.shop.corpus.rows:
            raise DataError(f"{self.shop.corpus.rows} rows came in, {lost} of them came out in no way")
        if not counts.rows_out and counts.rejected and not job.output.allow_empty:
            self.shop.stage.forget_parts(("output", "rejected"))  # all of them are empty
            raise self._all_rejected(results)
        if job.output.rejects is not None:
            publish.write_rejects(self._rejects(results), Path(job.output.rejects))
        for note in sources.grown(self.shop.corpus):
            self._watcher.warn(note)
        if job.output.path == STDOUT:
            self.send_ready()
            self._open_stream(made).close()
            return
        said = provenance.of_output(job, made, counts)
        summary.published = not self._is_unchanged(results, said)
        if summary.published:
            self._publish(results, said)

    def _all_rejected(self, results: list[Result]) -> DataError:
        first = self._rejects(results)[0].as_error().message
        return DataError(
            f"all {self.summary.counts.rejected:,} rows were rejected: nothing was changed; the first: {first}",
            "--allow-empty accepts it",
        )

    def _rejects(self, results: list[Result]) -> list[Reject]:
        return [reject for result in results for reject in result.rejects]

    def _is_unchanged(self, results: list[Result], said: dict[str, object]) -> bool:
        """Is the output, as it lies there, what this run would write, but for the versions of libraries?"""
        job, previous = self.shop.job, self.shop.previous
        if not planning.has_previous(job):
            return False
        kept = [result.previous for result in results if result.rows]
        return (
            kept == list(range(len(previous)))
            and describe.provenance_of(job.output.path).get("counts") == said["counts"]
        )

    def _publish(self, results: list[Result], said: dict[str, object]) -> None:
        stage, previous = self.shop.stage, self.shop.previous
        found = dict(zip(self.units, results, strict=True))
        blocks = [
            previous[result.previous] if result.previous is not None else reuse.Block(stage.part(index), 0, result.rows)
            for index, result in found.items()
            if result.rows
        ]
        if previous:
            self.summary.counts.removed = self._removed(blocks)
        if self.shop.job.output.directory:
            wanted = {stage.part(index).name: result.rows for index, result in found.items()}
            publish.publish_directory(stage, self.shop.schema, said, wanted)
        else:
            publish.publish_file(stage, self.shop.schema, said, blocks)

    def _removed(self, blocks: list[reuse.Block]) -> int:
        """How many rows of the output as it was have no row with their text any more."""
        before = [reuse.prefixes(self._shelf.hashes(block)) for block in self.shop.previous]
        now = (reuse.prefixes(self._shelf.hashes(block)) for block in blocks)
        return reuse.removed(np.sort(np.concatenate(before)), now)
