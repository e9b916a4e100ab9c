"""Locust users of the three models that a client asks.

One user is one client: in a closed load it asks, waits and asks again; in an open load (``--arrival-rate``) it asks
when the clock says so, whether or not earlier requests were answered, and a latency counts from when it was due.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import gevent
import gevent.pool
import grpc
import m2ost_contract as contract
from locust import User, task

from .channel import PREPARATION_DEADLINE_S, describe_failure
from .load_statistics import Sample
from .requests import (
    MODEL_ISTAR,
    BadAnswer,
    Tensors,
    infer_request,
    istar_tensors,
    patches_tensors,
    read_answer,
    slide_tensors,
)
from .session import Process, Session, now, process_of
from .workload import PRIORITY, Draw

REQUEST_TYPE = "grpc"


class RequestFailed(Exception):
    """A request failed; the reason, as it is counted."""


class ModelUser(User):
    """A client of one model.

    Attributes
    ----------
    model : str
        The model that it asks, as a release that is served alone calls it.
    """

    abstract = True
    model: ClassVar[str]

    def on_start(self) -> None:
        """Take part in the process's session."""
        self._process: Process = process_of(self.environment)
        self._process.go.wait(PREPARATION_DEADLINE_S)
        if self._process.session is None:
            raise self._process.error or RuntimeError("the load was not prepared; register load.listeners")
        self._session: Session = self._process.session
        self._load = self._session.load
        self._draw: Draw
        self.traffic, self._draw = self._session.enter()
        self._served = self._session.served[self.model]
        self._name = f"{self._served} {self.traffic}"
        self._sent = 0
        self._due = now() + self._load.first_s(self._draw)
        self._in_flight = gevent.pool.Group()

    def on_stop(self) -> None:
        """Give requests in flight Locust's ``--stop-timeout``; what is then unanswered is counted as such."""
        try:
            self._in_flight.join(timeout=self.environment.stop_timeout)
        finally:
            self._in_flight.kill()

    def wait_time(self) -> float:
        """Seconds until the next task. A user that waits here can be stopped."""
        return max(0.0, self._due - now()) if self._load.arrival_rate else self._load.think_s

    @task
    def ask(self) -> None:
        """One request of a closed load, or one arrival of an open one."""
        if self._load.arrival_rate:
            self._arrive()
        else:
            self._ask(now())

    def _arrive(self) -> None:
        if now() < self._due:  # the first, before which Locust has not waited
            self.wait()
        due = self._due
        self._due += self._load.gap_s(self._draw)
        if len(self._in_flight) < self._load.max_in_flight:
            self._in_flight.start(gevent.Greenlet(self._ask, due))
            return
        reason = f"NOT_SENT: {self._load.max_in_flight} requests of this user are unanswered (--max-in-flight)"
        at = now()
        self._record(Sample(due, at, at, bytes_sent=0, asked=0, failure=reason))

    def _ask(self, due: float) -> None:
        rows = self._load.spots_of(self.traffic)
        self._sent += 1
        request = infer_request(
            self._served,
            self.tensors(rows),
            request_id=f"{self._session.run_id}-{id(self) & 0xFFFFFF:06x}-{self._sent}",
            priority=self._priority,
            parameters=self._parameters,
        )
        sent_at, size = now(), request.ByteSize()
        response, failure, answer = None, None, None
        try:
            response = self._session.channel.infer(request, deadline_s=self._load.deadline_s)
            answered_at = now()
            answer = read_answer(response, rows)
        except grpc.RpcError as error:
            answered_at, failure = now(), describe_failure(error)
        except BadAnswer as error:
            failure = f"BAD_ANSWER: {error}"
        except gevent.GreenletExit:
            self._process.statistics.add_unanswered(self._name, due)
            raise
        self._record(
            Sample(
                due,
                sent_at,
                answered_at,
                bytes_sent=size,
                asked=rows,
                spots=answer.spots if answer else 0,
                without_value=answer.without_value if answer else {},
                failure=failure,
            ),
            request,
            response,
        )

    def _record(self, sample: Sample, request: Any = None, response: Any = None) -> None:
        """Count what became of a request, and tell Locust's listeners: of one that was sent also the messages."""
        self._process.statistics.add(self._name, sample)
        self.environment.events.request.fire(
            request_type=REQUEST_TYPE,
            name=self._name,
            response_time=(sample.completed_at - sample.intended_at) * 1e3,
            response_length=0 if response is None else response.ByteSize(),
            response=response,
            exception=RequestFailed(sample.failure) if sample.failure else None,
            context={"spots": sample.spots, "request": request},
            start_time=sample.intended_at,
        )

    @cached_property
    def _priority(self) -> int:
        """The class's priority level where the served model has levels; else none is sent."""
        levels = self._session.priority_levels[self._served]
        return min(PRIORITY[self.traffic], levels) if levels else 0

    @cached_property
    def _parameters(self) -> dict[str, str]:
        engine = self._session.engine
        return {contract.RELEASE_PARAMETER: engine.release_sha256} if engine else {}

    def tensors(self, rows: int) -> Tensors:
        """Inputs of the next request."""
        raise NotImplementedError


class SlideUser(ModelUser):
    """Asks ``m2ost_slide``: a slide's name and coordinates go out."""

    model = contract.MODEL_SLIDE

    def tensors(self, rows: int) -> Tensors:
        """Inputs of the next request."""
        chosen = self._draw.request(rows)
        return slide_tensors(chosen.slide, chosen.centers)


class PatchesUser(ModelUser):
    """Asks ``m2ost_patches``: pixels go out, 441 KiB a spot."""

    model = contract.MODEL_PATCHES

    @cached_property
    def _views(self) -> dict[str, Any]:
        return self._session.views(self._load.spots_of(self.traffic))

    def tensors(self, rows: int) -> Tensors:
        """Inputs of the next request."""
        return patches_tensors(self._views)


class IstarUser(ModelUser):
    """Asks ``istar_slide`` for the same spots as :class:`SlideUser` would."""

    model = MODEL_ISTAR

    @cached_property
    def _parameters(self) -> dict[str, str]:
        return {}

    def tensors(self, rows: int) -> Tensors:
        """Inputs of the next request."""
        chosen = self._draw.request(rows)
        diameter_um, mpp = self._load.spot_diameter_um, self._load.mpp
        return istar_tensors(chosen.slide, chosen.centers, spot_diameter_um=diameter_um, mpp=mpp)
