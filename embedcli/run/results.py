"""What became of all units: sent while they come in, counted, accounted for, published."""

import hashlib
from collections.abc import Sequence
from typing import BinaryIO

from embedcli import files, sources
from embedcli.computation import Computation
from embedcli.config import NAMED_FILES, STDOUT, Limit
from embedcli.errors import DataError
from embedcli.escaping import count
from embedcli.records import Reject
from embedcli.run.job import Counts, ProgressListener, Summary
from embedcli.run.planning import RunPlan, updates_output
from embedcli.run.unit import UnitResult, UnitState
from embedcli.store import ownership, parts, publish, stream_writers
from embedcli.store.changes import CHANGED, DELETED, NEW, Changes, Placed, as_lines, compare
from embedcli.store.claims import ClaimBoard
from embedcli.store.provenance import Provenance, merge_made
from embedcli.store.stale import keep, stale_rows
from embedcli.store.vector_file import RowGroup, VectorFile


class RunResults:
    """The results of a run's units. With a stream, each is sent as soon as all before it are there."""

    def __init__(
        self, plan: RunPlan, listener: ProgressListener, summary: Summary, stdout: BinaryIO | None
    ) -> None:
        self.plan = plan
        self.summary = summary
        self._listener = listener
        self._board = ClaimBoard(plan.stage, "publisher")
        self._results: dict[int, UnitResult] = {}
        self._finished = Counts()
        self._stdout = stdout
        self._stream: stream_writers.StreamWriter | None = None
        self._sent_units = 0
        self._shown_rows = 0
        self._shown_tokens = 0
        self._warned_of_prefix = False

    def observe(self, state: UnitState) -> None:
        """Warn of what should be seen early."""
        if state.result.counts.prefixed and not self._warned_of_prefix:
            prefix = self.plan.job.template.prefix.strip()
            self._listener.warn(
                f"texts already start with {prefix!r}, which the template puts before them once more"
            )
            self._warned_of_prefix = True

    def advance(self, rows: int, tokens: int) -> None:
        """Tell the listener what this process has done itself."""
        self._shown_rows += rows
        self._shown_tokens += tokens
        self._listener.advance(rows, tokens)

    def show(self) -> None:
        """Tell the listener what the others are at and how far all together are, and send what is
        ready.
        """
        self._collect()
        heartbeats, token = self._board.heartbeats(), self.plan.stage.token
        self._listener.workers([beat for beat in heartbeats if beat.worker != token])
        self.summary.rows_here = sum(
            heartbeat.finished_rows
            for heartbeat in heartbeats
            if heartbeat.worker.startswith(token)
        )
        heartbeats = [
            heartbeat
            for heartbeat in heartbeats
            if heartbeat.unit is not None and heartbeat.unit not in self._results
        ]
        rows = self._finished.rows_in + sum(heartbeat.rows for heartbeat in heartbeats)
        tokens = self._finished.encoded_tokens + sum(heartbeat.tokens for heartbeat in heartbeats)
        # A worker that dies takes the rows of its unit back; a bar doesn't go back.
        self.advance(max(0, rows - self._shown_rows), max(0, tokens - self._shown_tokens))
        self.send_ready()

    def _collect(self) -> None:
        for index in self._board.results.refresh():
            result = UnitResult.from_json(self._board.results[index])
            self._results[index] = result
            self._finished.add(result.counts)

    def send_ready(self) -> None:
        """Send the units whose turn it is, unless too many rows are rejected already."""
        limit = self.plan.job.output.max_rejected
        self._collect()
        if limit != Limit():
            rejected, rows = self._finished.rejected, self.plan.corpus.rows
            _check("--max-rejected", limit, rejected, rows, "rejected")
        if self.plan.job.output.path != STDOUT:
            return
        units = self.plan.units
        while self._sent_units < len(units) and units[self._sent_units] in self._results:
            self._send(units[self._sent_units])
            self._sent_units += 1

    def _send(self, index: int) -> None:
        result = self._results[index]
        assert result.part is not None  # a stream has no earlier output
        part = self.plan.stage.parts / result.part.file
        if result.rows:
            stream = self._open_stream(result.made)
            for table in parts.read_row_groups(part):
                stream.write(table)
        part.unlink()

    def _open_stream(self, made: Sequence[Computation]) -> stream_writers.StreamWriter:
        """Open the stream, once. It starts with its metadata, before there is anything to count."""
        if self._stream is None:
            assert self._stdout is not None
            open_writer = stream_writers.WRITERS[self.plan.job.output.format]
            self._stream = open_writer(
                self._stdout, self.plan.schema, self.plan.job.provenance(made)
            )
        return self._stream

    def publish(self) -> None:
        """Account for all rows and make the output visible.

        Raises DataError where a row is lost, StorageError.
        """
        self._collect()
        job, counts = self.plan.job, self.summary.counts
        results = [self._results[index] for index in self.plan.units]
        made = merge_made(entry for result in results for entry in result.made)
        rejects = [reject for result in results for reject in result.rejects]
        self._sum_up(results, made)
        self._account()
        if not counts.rows_out and rejects and not job.output.allow_empty:
            self.plan.stage.forget_parts(("parts", "results"))  # all of them are empty
            raise _all_rejected(rejects)
        keeps_rejects = job.output.rejects is not None or job.output.rejects_inside
        rejects_file = publish.rejects_as_bytes(rejects) if keeps_rejects else b""
        rejects_sha256 = hashlib.sha256(rejects_file).hexdigest() if rejects_file else ""
        signature = self.plan.signature
        stale, lines = self._compare(results, rejects) if job.run.update else (None, b"")
        if stale is not None:
            made = merge_made([*made, *self._made_before()])
        provenance = job.provenance(made, counts.of_output(rejects_sha256), signature)
        groups = self._groups(results, stale)
        to_file = job.output.path != STDOUT
        self.summary.published = not (to_file and self._is_unchanged(groups, provenance))
        self._check_limits()
        if job.output.changes is not None:
            # Before the output, as the rejects: a rerun finds the same changes.
            ownership.check_replaceable(job.output.changes, "--changes", ownership.are_changes)
            files.write_atomically(job.output.changes, lines)
        if rejects:
            self.summary.rejects = job.output.rejects_file
            first = rejects[:NAMED_FILES]
            self.summary.first_rejects = [reject.as_error().message for reject in first]
        if job.output.rejects is not None:
            # Before the output, which holds their digest: who finds a pair that doesn't match knows
            # that a run was killed between the two.
            publish.write_rejects(rejects_file, job.output.rejects)
        notes = [result.note for result in results]
        for note in dict.fromkeys(
            [*sources.grown(self.plan.corpus), *map(_slowness, made), *notes]
        ):
            if note:
                self._listener.warn(note)
        if not to_file:
            self.send_ready()
            self._open_stream(made).close()
        elif self.summary.published:
            self._publish(groups, provenance, rejects_file)

    def _check_limits(self) -> None:
        """See that no more rows are rejected or removed than the user allows. Raises DataError."""
        counts, output = self.summary.counts, self.plan.job.output
        rows_before = sum(group.rows for group in self.plan.previous)
        _check("--max-rejected", output.max_rejected, counts.rejected, counts.rows_in, "rejected")
        _check("--max-removed", output.max_removed, counts.deleted, rows_before, "removed")

    def _sum_up(self, results: Sequence[UnitResult], made: Sequence[Computation]) -> None:
        """Add the units' counts and times to the summary."""
        summary = self.summary
        summary.counts.rows_in = 0
        for result in results:
            summary.counts.add(result.counts)
            for stage, seconds in result.seconds.items():
                summary.seconds[stage] = summary.seconds.get(stage, 0.0) + seconds
        summary.computations = list(made)
        summary.example = next((result.example for result in results if result.example), "")

    def _account(self) -> None:
        """See that every row of the input is either output or rejected. Raises DataError."""
        rows, counts = self.plan.corpus.rows, self.summary.counts
        lost = rows - counts.rows_out - counts.rejected
        if lost or counts.rows_in != rows:
            raise DataError(
                f"row accounting failed: {lost} of {rows} rows are neither output nor rejected"
            )

    def _is_unchanged(self, groups: Sequence[RowGroup], provenance: Provenance) -> bool:
        """Tell whether the output is what this run would write, but for the versions of libraries."""
        if not updates_output(self.plan.job):
            return False
        if groups != list(self.plan.previous):
            return False
        stored = VectorFile(self.plan.job.output.path).provenance
        if stored is None or stored.counts != provenance.counts:
            return False
        # Others see by the signature that this run is through.
        return not self.plan.job.run.join or stored.signature == provenance.signature

    def _publish(
        self, groups: Sequence[RowGroup], provenance: Provenance, rejects_file: bytes
    ) -> None:
        plan = self.plan
        if not plan.job.output.directory:
            publish.publish_file(plan.stage, plan.schema, provenance, groups)
            return
        earlier = {group.path for group in plan.previous}
        part_sources = []
        for group in groups:
            order = parts.order_of_part(group.path.name) if group.path in earlier else None
            part_sources.append(publish.PartSource(group.path, group.rows, order))
        inside = rejects_file if plan.job.output.rejects_inside else b""
        publish.publish_directory(plan.stage, plan.schema, provenance, part_sources, inside)

    def _groups(self, results: Sequence[UnitResult], stale: RowGroup | None) -> list[RowGroup]:
        """Return where all rows of the output lie, in order; stale ones last."""
        groups = [self._group(result) for result in results]
        return [group for group in (*groups, stale) if group is not None]

    def _group(self, result: UnitResult) -> RowGroup | None:
        """Return where a unit's rows lie: in the earlier output, or in a new part; None without rows."""
        if result.previous is not None:
            return self.plan.previous[result.previous]
        if result.rows and result.part is not None:
            return RowGroup(self.plan.stage.parts / result.part.file, 0, result.rows)
        return None

    def _compare(
        self, results: Sequence[UnitResult], rejects: Sequence[Reject]
    ) -> tuple[RowGroup | None, bytes]:
        """Count what the update changed; return the rows of earlier vectors that stay although their
        texts turned bad, and what changed as JSON lines, where that is asked.

        Raises DataError where that takes ids, and there are none.
        """
        before, after = self._replaced(results)
        job, counts = self.plan.job, self.summary.counts
        id_column = self._id_column()
        for option, is_asked in (
            ("--changes", job.output.changes is not None),
            ("--keep-stale", job.input.keep_stale),
        ):
            if is_asked and id_column is None:
                raise DataError(
                    f"{option} needs ids, and there is no column _id or id",
                    "name it: --id-column",
                )
        changes = compare(
            before,
            [place.group for place in after],
            id_column,
            self.plan.stage.run,
            with_columns=job.output.changes is not None,
        )
        kept = self._keep_stale(changes, before, id_column, rejects) if id_column else None
        counts.new, counts.changed = changes.count(NEW), changes.count(CHANGED)
        counts.deleted = changes.count(DELETED)
        counts.unchanged = counts.rows_out - counts.new - counts.changed
        if job.output.changes is None:
            return kept, b""
        assert id_column is not None
        return kept, b"".join(as_lines(changes, before, after, id_column))

    def _keep_stale(
        self,
        changes: Changes,
        before: Sequence[RowGroup],
        id_column: str,
        rejects: Sequence[Reject],
    ) -> RowGroup | None:
        """Keep the earlier vectors of rows whose text turned bad, or say that they are gone."""
        rejected_ids = {reject.id for reject in rejects if reject.id}
        stale = stale_rows(changes, before, id_column, rejected_ids) if rejected_ids else []
        if not stale:
            return None
        job, rows = self.plan.job, sum(len(entry.rows) for entry in stale)
        if not job.input.keep_stale:
            self._listener.warn(
                f"{count(rows, 'rejected row')} had a vector, which goes: --keep-stale keeps it"
            )
            return None
        self.summary.counts.stale = rows
        provenance = job.provenance(self._made_before())
        path = self.plan.stage.unfinished()
        return keep(stale, changes, self.plan.schema, provenance, path)

    def _made_before(self) -> Sequence[Computation]:
        """Return what computed the vectors of the output that is updated."""
        output = self.plan.job.output
        return VectorFile(output.path, output.embedding_column).made.made

    def _replaced(self, results: Sequence[UnitResult]) -> tuple[list[RowGroup], list[Placed]]:
        """Return the row groups of the output as it was that don't stay, and the new ones.

        Rows that stay are partners of themselves. A group that stays twice counts once.
        """
        stays = {result.previous for result in results if result.previous is not None}
        before = [group for number, group in enumerate(self.plan.previous) if number not in stays]
        after: list[Placed] = []
        first = 0
        for result in results:
            group = self._group(result)
            if group is None:
                continue
            if result.previous in stays:
                stays.remove(result.previous)
            else:
                after.append(Placed(group, first))
            first += group.rows
        return before, after

    def _id_column(self) -> str | None:
        """Return the column that tells rows apart, if the outputs as it was and as it becomes have one.

        Raises DataError where the one that was asked for isn't there.
        """
        requested = self.plan.job.input.id_column
        names = set(self.plan.schema.names)
        if requested is not None and requested not in names:
            raise DataError(
                f"--id-column {requested}: the output has no such column",
                f"its columns: {', '.join(self.plan.schema.names)}",
            )
        if self.plan.previous:
            names &= set(VectorFile(self.plan.job.output.path).columns)
        return next((name for name in self.plan.job.input.id_columns if name in names), None)


def _slowness(computation: Computation) -> str:
    """Return a warning where a GPU ran slower than it could."""
    if not computation.is_slow:
        return ""
    return (
        f"{computation.device}: attention was {computation.attention} and not varlen, which is "
        f"faster: {computation.reason}"
    )


def _check(option: str, limit: Limit, count: int, rows: int, verb: str) -> None:
    if not limit.allows(count, rows):
        raise DataError(
            f"{count:,} of {rows:,} rows would be {verb}, more than {option} {limit}: "
            "nothing was changed",
            f"if that is right, raise {option}",
        )


def _all_rejected(rejects: Sequence[Reject]) -> DataError:
    first_reason = rejects[0].as_error().message
    return DataError(
        f"all {len(rejects):,} rows were rejected: nothing was changed; the first: {first_reason}",
        "--allow-empty accepts it",
    )
