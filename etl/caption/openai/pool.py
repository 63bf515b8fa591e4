"""Shares items among endpoints: to each as many as it bears, and to those that fail none until they answer again."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from etl.caption.captioner import failure
from etl.caption.openai.endpoint import Endpoint, Identity
from etl.caption.openai.endpoint_state import Job, Member, State
from etl.caption.openai.responses import EndpointBusyError, EndpointTroubleError, OtherModelError
from etl.caption.quality import quality_flags
from etl.clock import now_ms
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.errors import (
    CaptionError,
    EndpointAnswerError,
    EndpointFailedError,
    EndpointRefusedError,
    EndpointTimeoutError,
    InternalError,
    ItemError,
    ModelError,
    OpenFilesError,
    WorkingCopyError,
)
from etl.images.working_copies import working_copy_bytes
from etl.settings import Settings

log = logging.getLogger(__name__)

TICK_S = 0.1
"""Seconds between two looks at pauses, trials and patience."""

HEALTH_CHECK_S = 30.0
"""Seconds of silence, with requests under way, after which an endpoint must show that it lives."""

TRIES = 3
"""Failures of endpoints under one picture after which it is charged an attempt: it may be what breaks them."""

END_S = 5.0
"""Longest wait for requests that are broken off."""

Outcome = CaptionResult | ItemFailure


class Pool:
    """The endpoints at work, for one event loop; other threads may read its properties.

    ``deliver`` is given every outcome, and once the error with which nothing can go on.
    """

    def __init__(
        self,
        endpoints: list[Endpoint],
        identity: Identity,
        settings: Settings,
        locate: Callable[[str], Path],
        deliver: Callable[[Outcome | BaseException], None],
    ) -> None:
        self._members = [Member(endpoint) for endpoint in endpoints]
        self._identity = identity
        self._patience_s = settings.endpoint_patience
        self._locate = locate
        self._deliver = deliver
        self._pending: deque[Job] = deque()
        self._watcher: asyncio.Task[None] | None = None
        for member in self._members:
            if member.endpoint.identity is None:
                member.mark_unhealthy("it did not answer at the start")

    @property
    def allowed(self) -> list[int]:
        """For each endpoint, how many requests may run at once; 0 while it is unhealthy."""
        return [member.allowed for member in self._members]

    @property
    def under_way(self) -> list[int]:
        """For each endpoint, how many requests run."""
        return [len(member.tasks) for member in self._members]

    @property
    def waiting(self) -> int:
        """Items that no endpoint has yet."""
        return len(self._pending)

    def start(self) -> None:
        """Begin to watch; called in the loop."""
        self._watcher = asyncio.create_task(self._watch())

    def add(self, item: CaptionItem) -> None:
        """Take an item on."""
        if not self._pending and not any(member.tasks for member in self._members):
            # There was nothing to do well with since the last failure.
            for member in self._members:
                member.begin()
        self._pending.append(Job(item, now_ms()))
        self._dispatch()

    async def abandon(self) -> None:
        """Want nothing any more of what is under way."""
        self._pending.clear()
        await _end([task for member in self._members for task in member.tasks])

    async def close(self) -> None:
        """End everything."""
        await _end([task for task in (self._watcher, *(m.side for m in self._members)) if task is not None])
        await self.abandon()

    def _dispatch(self) -> None:
        while self._pending:
            able = [member for member in self._members if member.room > 0]
            if not able:
                return
            job = self._pending.popleft()
            # The one that failed under this item is asked last; among the others the emptiest.
            member = max(able, key=lambda m: (m is not job.failed_at, m.room / m.endpoint.concurrency.allowed))
            if not member.tasks:
                member.endpoint.heard_at = time.monotonic()
            member.endpoint.latest += 1
            task = asyncio.create_task(self._work(member, job, member.endpoint.latest))
            member.tasks[task] = job

    async def _work(self, member: Member, job: Job, number: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._attempt(member, job, number)
        finally:
            member.tasks.pop(task, None)
            self._dispatch()

    async def _attempt(self, member: Member, job: Job, number: int) -> None:
        endpoint, item = member.endpoint, job.item
        try:
            jpeg = await asyncio.to_thread(_read, self._locate(item.working_sha256))
            answer = await endpoint.caption(item.prompt, jpeg, item.repetition_penalty)
        except EndpointBusyError as error:
            member.busy(error, number)
            self._pending.appendleft(job)
        except EndpointTroubleError as error:
            self._trouble(member, job, error)
        except CaptionError as error:
            self._learn(member, error, number)
            self._fail(job, error)
        except OtherModelError as error:
            member.give_up(str(error))
            self._pending.appendleft(job)
        except (ModelError, OpenFilesError) as error:
            self._deliver(error)
        except Exception as error:
            log.exception("caption %d failed in a way that was not foreseen", item.id)
            self._fail(job, InternalError(f"{type(error).__name__}: {error}"))
        else:
            endpoint.concurrency.success(number, len(member.tasks), time.monotonic())
            member.alive()
            text, tokens, reason, thinking = answer.text, answer.tokens, answer.finish_reason, answer.thinking
            flags = quality_flags(text, item.prompt, reason, tokens, thinking)
            self._end_job(job, CaptionResult(item.id, text, tokens, reason, flags, thinking))

    def _end_job(self, job: Job, outcome: Outcome) -> None:
        job.ended = True
        self._deliver(outcome)

    def _fail(self, job: Job, error: ItemError) -> None:
        self._end_job(job, failure(job.item, error, job.started_at))

    def _learn(self, member: Member, error: CaptionError, number: int) -> None:
        """Note what the failure of one picture says about the endpoint."""
        if isinstance(error, EndpointTimeoutError):
            member.endpoint.concurrency.overload(number, member.endpoint.latest)
        if isinstance(error, EndpointTimeoutError | EndpointAnswerError | EndpointRefusedError):
            # A row of refusals may mean that something else is served there now; a trial will tell.
            member.failed(str(error))
        elif not isinstance(error, WorkingCopyError):
            member.alive()

    def _trouble(self, member: Member, job: Job, error: EndpointTroubleError) -> None:
        if error.gone:
            member.mark_unhealthy(str(error))
            self._pending.appendleft(job)
            return
        member.failed(str(error))
        job.tries, job.failed_at = job.tries + 1, member
        if job.tries < TRIES:
            self._pending.append(job)
        else:
            self._fail(job, EndpointFailedError(f"endpoints failed {TRIES} times under this picture: {error}"))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for member in self._members:
                if member.side is not None and not member.side.done():
                    continue
                if member.state is State.UNHEALTHY and member.until <= now:
                    member.side = asyncio.create_task(self._try_again(member))
                elif member.state is State.HEALTHY and member.tasks and now - member.endpoint.heard_at > HEALTH_CHECK_S:
                    member.side = asyncio.create_task(self._health_check(member))
            self._dispatch()
            if self._pending and (error := self._hopeless(now)) is not None:
                self._deliver(error)
                return

    def _hopeless(self, now: float) -> ModelError | None:
        """Return the error that ends the run when no endpoint has worked for longer than the patience."""
        left = [member for member in self._members if member.state is not State.GIVEN_UP]
        whys = "; ".join(f"{member.endpoint}: {member.why}" for member in self._members)
        if not left:
            return ModelError(f"no endpoint is left: {whys}")
        if all(m.until - now > self._patience_s for m in left):
            return ModelError(f"every endpoint asks to wait longer than {self._patience_s:g} s: {whys}; run again then")
        if all(m.failing_since is not None and now - m.failing_since > self._patience_s for m in left):
            return ModelError(f"no endpoint has captioned anything for {self._patience_s:g} s: {whys}; run again later")
        return None

    async def _try_again(self, member: Member) -> None:
        """Open an unhealthy endpoint again, if it captions and serves what it should."""
        endpoint = member.endpoint
        try:
            await endpoint.renew()
            identity = await endpoint.probe()
        except EndpointBusyError as error:
            member.mark_unhealthy(str(error), error.seconds or 0.0)
        except (EndpointTroubleError, CaptionError, TimeoutError) as error:
            member.mark_unhealthy(str(error) or "it does not answer")
        except ModelError as error:
            member.give_up(str(error))
        else:
            if identity != self._identity:
                member.give_up(f"it serves {identity.model}@{identity.revision} now, or takes other requests")
                return
            endpoint.identity = identity
            member.mark_healthy()
            self._dispatch()

    async def _health_check(self, member: Member) -> None:
        """Take from an endpoint that shows no life what it has, and give it to the others."""
        try:
            await member.endpoint.models()
        except (EndpointTroubleError, TimeoutError) as error:
            if isinstance(error, EndpointTroubleError) and error.answered:
                return
            why = str(error) or "it has stopped answering"
        except (CaptionError, ModelError, EndpointBusyError):
            return
        else:
            return
        member.mark_unhealthy(why)
        lost = dict(member.tasks)
        await _end(lost)
        self._pending.extendleft(job for job in lost.values() if not job.ended)
        await member.endpoint.renew()
        self._dispatch()


async def _end(tasks: Collection["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=END_S)


def _read(path: Path) -> bytes:
    """Return the working copy's bytes; raises as `working_copy_bytes`, also for what is no whole JPEG."""
    jpeg = working_copy_bytes(path)
    if not (jpeg.startswith(b"\xff\xd8\xff") and jpeg.endswith(b"\xff\xd9")):
        raise WorkingCopyError(f"the working copy {path.name} cannot be read: it is no whole JPEG")
    return jpeg
