"""A run over an archive: many slides in flight, bounded by their spots."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict

from m2ost_contract import PositionsError
from m2ost_preprocess.errors import PreprocessError, SlideNotFound

from ..errors import (
    AccessRefused,
    BadAnswer,
    InputError,
    OutputError,
    ReleaseChanged,
    RequestRejected,
    ServerStartError,
    ServerUnavailable,
)
from ..files import INDEX
from ..options import check_genes, check_sending
from ..tracing import span
from .access import Access
from .budget import Budget, Share
from .options import ArchiveReport, Progress, RescoreOptions
from .output import (
    RESULTS,
    SUMMARY,
    TABLE,
    assemble,
    is_there,
    remove_result,
    summarise,
    write_pages,
    write_slide,
    write_summary,
    write_table,
)
from .plan import ENGINE_OF_BEFORE, SlidePlan, plan_slide, result_key
from .pool import Drained, Pool
from .runner import InProcess, Runner
from .score import join, missing
from .slide_list import SlideList, SlideRow
from .staging import Staging
from .state import CHANGED, DONE, LEFT_OUT, Part, SlideRecord, State
from .storage import SIZE_ONLY, is_url, source_version

KEEP_SPOTS, KEEP_S = 1024, 1.0
"""Parts of a slide are kept after so many spots, or so many seconds."""

_SLIDES_OWN = (RequestRejected, BadAnswer, PreprocessError, PositionsError, InputError)
_RUNS_OWN = (OutputError, ServerUnavailable, AccessRefused, ReleaseChanged, ServerStartError)


class Rescore:
    """One run.

    Parameters
    ----------
    slides : SlideList
        The archive's slides, and what lies among them and is not scored, for the summary and the state.
    options : RescoreOptions
    state : State
    pool : Pool
        Opened.
    access : Access
    runner : Runner, optional
        Where spots are scored; by default in this process, through the pool.
    on_progress : callable, optional
        Receives a :class:`Progress` whenever something came to an end.

    Attributes
    ----------
    pool : Pool
        The servers, with what they did.
    runner : Runner
        Where spots are scored.
    """

    def __init__(
        self,
        slides: SlideList,
        options: RescoreOptions,
        state: State,
        pool: Pool,
        access: Access,
        *,
        runner: Runner | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._rows, self._left_out, self._shard = slides.rows, slides.left_out, slides.shard
        self._options, self._state = options, state
        self.pool, self._access = pool, access
        self.runner = runner or InProcess(pool, access.scorer, options.batch_rows)
        self._on_progress = on_progress or (lambda progress: None)
        self._staging = Staging(options.staging_folder, options.cache_bytes, options.patience)
        self._budget = Budget(options.spots_in_flight)
        self._position = {row.slide_id: n for n, row in enumerate(self._rows)}
        self._drained = False
        self._settled = self._skipped = self._spots = 0
        self._began = self._noted = time.monotonic()

    def drain(self) -> None:
        """Take up nothing new; what is under way comes to its end and is kept."""
        self._drained = True
        self.runner.drain()
        self.pool.drain()

    async def run(self) -> ArchiveReport:
        """Score what is to be scored.

        Returns
        -------
        ArchiveReport
            Slides that cannot be scored are in it, with the reason.

        Raises
        ------
        InputError
            If the archive was scored with another release, engine or settings, and is not to be scored anew; or if a
            gene is not in the panel, or an export needs what is not installed.
        OutputError, ServerUnavailable, ServerStartError
            If the run cannot go on; what was scored is kept, and the same command goes on from there.
        """
        try:
            return await self._run()
        finally:
            self._staging.close()

    async def _run(self) -> ArchiveReport:
        self._options.exports.check_installed()
        check_genes(self._options.genes or (), self.pool.info)
        check_sending(self._access.sends_pixels, self.pool.info)
        self._prepare()
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._work_off(tasks)
        except BaseException as error:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # The first error is the one to tell: on a full disk this fails as well.
            with suppress(OutputError):
                self._report("stopped" if isinstance(error, asyncio.CancelledError) else "failed")
            raise
        return self._report("drained" if self._drained else "done")

    def _prepare(self) -> None:
        options, state = self._options, self._state
        results = options.out / RESULTS
        results.mkdir(parents=True, exist_ok=True)
        for leftover in results.glob(".m2ost-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if any(is_url(row.path) for row in self._rows):
            self._staging.open()
        state.begin_run()
        state.list_slides(self._rows)
        state.set(LEFT_OUT, [asdict(left) for left in self._left_out])
        self._agree_on_settings()
        # Where they are, no run was cut off since.
        for name in (TABLE, SUMMARY, INDEX):
            (options.out / name).unlink(missing_ok=True)

    def _agree_on_settings(self) -> None:
        """One archive, one release, engine and set of settings: what was made otherwise is refused, or made anew."""
        options, state, engine = self._options, self._state, self.pool.info
        now = options.settings.to_dict(engine)
        before = state.setting("settings")
        if before is not None:
            before = {"engine": ENGINE_OF_BEFORE, "pyramid": False, **before}
        if before not in (None, now):
            records = state.slides()
            changes = ", ".join(
                f"{name} was {before.get(name)}, is {now[name]}" for name in now if now[name] != before.get(name)
            )
            if not options.rescore_changed and any(record.facts is not None for record in records):
                raise InputError(
                    f"{options.out}: this archive was scored otherwise ({changes}); go back to that to go on, give "
                    "--rescore-changed to score it anew, or choose another --out"
                )
            rows = {row.slide_id: row for row in self._rows}
            for record in records:
                row = rows[record.slide_id]
                if (
                    record.facts
                    and result_key(row, record.facts["fingerprint"], options.settings, engine) != record.key
                ):
                    remove_result(record.slide_id, options.out)
                    state.reset(record.slide_id)
        state.set("settings", now)

    async def _work_off(self, tasks: set[asyncio.Task[None]]) -> None:
        for row in self._rows:
            admitted = asyncio.ensure_future(self._budget.admit())
            try:
                while not admitted.done():
                    await asyncio.wait({admitted, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                    self._raise_first(tasks)
            finally:
                admitted.cancel()
            if self._drained:
                break
            tasks.add(asyncio.ensure_future(self._slide(row)))
        while tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._raise_first(tasks)

    def _raise_first(self, tasks: set[asyncio.Task[None]]) -> None:
        for task in [task for task in tasks if task.done()]:
            tasks.discard(task)
            task.result()

    async def _slide(self, row: SlideRow) -> None:
        """Bring one slide to its outcome; raises only what ends the run."""
        share = Share(self._budget)
        try:
            with span("slide", {"m2ost.slide_id": row.slide_id, "m2ost.slide": row.path}):
                await self._bring_home(row, share)
        except Drained:
            self._state.put_back(row.slide_id)
            return
        except _RUNS_OWN:
            raise
        except _SLIDES_OWN as error:
            self._state.fail(row.slide_id, str(error))
        except Exception as error:  # one slide's surprise must not end the others
            self._state.fail(row.slide_id, f"unexpected {type(error).__name__}: {error}")
        finally:
            await share.forget()
        self._settled += 1
        self._tell()

    async def _bring_home(self, row: SlideRow, share: Share) -> None:
        state, options = self._state, self._options
        record = state.slide(row.slide_id)
        if record.state in (DONE, CHANGED):
            if is_there(record, options.out):
                change = await self._change_of(row, record)
                if change is None:
                    if record.state == CHANGED:
                        state.note_unchanged(row.slide_id)
                    self._skipped += 1
                    return
                if not options.rescore_changed:
                    state.note_changed(
                        row.slide_id, f"{change}; its result is of before: --rescore-changed makes it anew"
                    )
                    return
            remove_result(row.slide_id, options.out)
            state.reset(row.slide_id)
        if not state.claim(row.slide_id):
            raise RuntimeError("claimed twice in one run")
        async with self._located(row) as (path, version):
            plan = await plan_slide(
                row, lambda pitch_um, mpp: self._access.describe(path, pitch_um, mpp), options.settings, self.pool.info
            )
            await share.spots(len(plan.spots))
            scored = await self._score(plan, path)
            if self._access.reads_here and await self._access.fingerprint(path) != plan.slide.fingerprint:
                raise InputError(f"{row.path}: changed while it was scored; run the same command again")
            await self.pool.check_release()
        result = assemble(plan, self.pool.info, scored)
        facts = await asyncio.to_thread(
            write_slide,
            plan,
            result,
            options.out,
            options.genes,
            exports=options.exports,
            pixels_sent=self._access.sends_pixels,
        )
        state.finish(row.slide_id, plan.key, {**facts, "source_version": version})

    async def _score(self, plan: SlidePlan, path: str) -> Part:
        options, state, slide_id = self._options, self._state, plan.row.slide_id
        have = state.begin(slide_id, plan.parts_key(options.batch_rows), len(plan.spots))
        unsaved: list[Part] = []
        saved_at = time.monotonic()

        def keep() -> None:
            nonlocal saved_at
            if unsaved:
                state.keep(slide_id, unsaved)
                unsaved.clear()
            saved_at = time.monotonic()

        def on_part(part: Part) -> None:
            have.append(part)
            unsaved.append(part)
            self._spots += len(part.status)
            if sum(len(p.status) for p in unsaved) >= KEEP_SPOTS or time.monotonic() - saved_at >= KEEP_S:
                keep()
                self._note()
            self._tell()

        n_spots = len(plan.spots)
        most = None if plan.places is not None else self.runner.range_spots
        ranges = missing(have, n_spots, most or max(n_spots, 1))
        units = [plan.unit(self._access.name(path), first, end) for first, end in ranges]
        try:
            await self.runner.score(units, priority=self._position[slide_id], on_part=on_part)
        except BaseException:
            keep()
            raise
        return join(have, n_spots)

    async def _change_of(self, row: SlideRow, record: SlideRecord) -> str | None:
        """What is another than when the result was made, in words; None for nothing, or a slide that is gone."""
        assert record.facts is not None
        now = record.facts["fingerprint"]
        try:
            if is_url(row.path):
                version = await asyncio.to_thread(source_version, row.path, patience=self._options.patience)
                if version.startswith(SIZE_ONLY) or version != record.facts["source_version"]:
                    async with self._located(row) as (path, _):
                        now = await self._access.fingerprint(path)
            else:
                now = await self._access.fingerprint(row.path)
        except SlideNotFound:
            return None
        except RequestRejected as error:
            if error.status == "NOT_FOUND":
                return None
            raise
        if now != record.facts["fingerprint"]:
            return f"{row.path}: its content has changed"
        if result_key(row, now, self._options.settings, self.pool.info) != record.key:
            return f"{row.path}: its µm/px, spots, mask or pitch in the slide list have changed"
        return None

    @asynccontextmanager
    async def _located(self, row: SlideRow) -> AsyncIterator[tuple[str, str | None]]:
        """Where the slide can be read, and the version that its storage tells."""
        if not is_url(row.path):
            yield row.path, None
            return
        async with self._staging.stage(row.path) as (copy, version):
            yield str(copy), version

    def _note(self, ended: str | None = None) -> None:
        now = time.monotonic()
        if ended is not None or now - self._noted >= KEEP_S:
            self._noted = now
            self._state.note_run(spots=self._spots, seconds=now - self._began, ended=ended)

    def _tell(self) -> None:
        self._on_progress(Progress(self._settled, len(self._rows), self._spots))

    def _report(self, ended: str) -> ArchiveReport:
        self._note(ended)
        records = self._state.slides()
        run = {
            "ended": ended,
            "spots": self._spots,
            "seconds": round(time.monotonic() - self._began, 3),
            "retries": self.pool.retries,
            "servers": [endpoint.counts() for endpoint in self.pool.endpoints],
            "batch_rows": self._options.batch_rows,
            "pixels_sent_by_client": self._access.sends_pixels,
            "cache_peak_bytes": self._staging.peak_bytes,
            **self.runner.facts(),
            **asdict(self._options.settings),
            "release_sha256": self.pool.info.release_sha256,
            "engine": self.pool.info.runs_on,
        }
        summary = summarise(records, skipped=self._skipped, run=run, left_out=self._left_out, shard=self._shard)
        write_table(records, self._options.out)
        write_summary(summary, self._options.out)
        if self._options.exports.report and ended in ("done", "drained"):
            write_pages(records, self._options.out)
        return ArchiveReport(summary, self._drained)
