"""What a run tells Prefect, sent by one thread: the run never waits for the server, and goes on without it.

Log lines, events (the states of tasks) and artifacts that the API does not take are kept and sent again. The state of
the flow itself is set by Prefect's engine; `told` is for a caller that wants what the flow gave in any case.
"""

import atexit
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import httpx
from prefect import Flow
from prefect.artifacts import Artifact, LinkArtifact, MarkdownArtifact, ProgressArtifact, TableArtifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext
from prefect.events import Event
from prefect.events.worker import EventsWorker, ProcessPoolForwardingEventsClient
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import set_api_log_sink
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.context import get_task_and_flow_run_ids

from flows.servers import ServerError

log = logging.getLogger(__name__)

BATCH = 200
SEND_EVERY_S = 1.0
SETTLE_S = 3.0
DRAIN_S = 10.0
LAST_LINES_S = 3.0

Send = Callable[[SyncPrefectClient], object]

# pydantic completes these when they are first used, and a run that is told to end meanwhile would end with its error.
for _model in (LinkArtifact, MarkdownArtifact, ProgressArtifact, TableArtifact, ArtifactCreate, ArtifactUpdate):
    _model.model_rebuild()


class Outbox:
    """The queues and the thread that empties them. There is one, `OUTBOX`: Prefect's hooks are the process's."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque()
        self._logs: deque[dict[str, Any]] = deque()
        self._calls: deque[Send] = deque()
        self._wake = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Takes over what Prefect would send itself, until the process ends."""
        if self._thread is not None and self._thread.is_alive():
            return
        set_api_log_sink(self._take_log)
        # The one client of Prefect's that hands events on; it would drop the events of a client that it does not know.
        EventsWorker.set_client_override(ProcessPoolForwardingEventsClient, event_queue=self)
        EventsWorker.attach_related_resources_from_context = _attach_flow_run
        self._thread = threading.Thread(target=self._send_all, name="amvl-prefect", daemon=True)
        self._thread.start()
        atexit.register(self._last_lines)

    def put(self, item: tuple[str, Event]) -> None:
        """Queues an event; called by Prefect, with what kind of item it is."""
        self._events.append(item[1].model_dump(mode="json"))

    def call(self, send: Send) -> None:
        """Queues a call of the API; it may be repeated."""
        self._calls.append(send)

    def flush(self, limit_s: float) -> None:
        """Sends what is waiting, at most `limit_s` long."""
        deadline = time.monotonic() + limit_s
        self._wake.set()
        while (self._events or self._logs or self._calls) and time.monotonic() < deadline:
            time.sleep(0.05)  # what waits may grow meanwhile, so there is nothing to join

    def _last_lines(self) -> None:
        if not self._lost:
            self.flush(LAST_LINES_S)

    def _take_log(self, line: dict[str, Any]) -> None:
        if line["message"] == "Finished in state Completed()":  # of a task: its state says it
            return
        self._logs.append({key: value for key, value in line.items() if key != "__payload_size__"})

    def _send_all(self) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            client = get_client(sync_client=True)
            while True:
                self._wake.wait(SEND_EVERY_S)
                self._wake.clear()
                if self._lost and not self._back(client):
                    continue
                while self._send_one(client):
                    pass

    def _back(self, client: SyncPrefectClient) -> bool:
        """Whether the API answers again; what takes the events begins to listen a little after it."""
        if client.api_healthcheck() is not None:
            return False
        log.warning("Prefect at %s answers again", PREFECT_API_URL.value())
        time.sleep(SETTLE_S)
        self._lost = False
        return True

    def _send_one(self, client: SyncPrefectClient) -> bool:
        """Sends one batch or call; False where nothing is waiting or the API is lost."""
        for path, waiting in (("/events", self._events), ("/logs/", self._logs)):
            if batch := [waiting[i] for i in range(min(len(waiting), BATCH))]:
                sent = self._try(partial(client.request, "POST", path, json=batch))
                for _ in batch if sent else ():
                    waiting.popleft()
                return sent
        if not self._calls:
            return False
        if sent := self._try(lambda: self._calls[0](client)):
            self._calls.popleft()
        return sent

    def _try(self, send: Callable[[], object]) -> bool:
        """Whether it is dealt with: taken, or refused for good. No error leaves it: the thread must live on."""
        try:
            send()
        except Exception as error:
            if not _may_pass(error):
                log.warning("Prefect refused what it was sent: %s", error)
                return True
            log.warning(
                "Prefect at %s does not answer; the run goes on, and what it tells Prefect is kept until it does",
                PREFECT_API_URL.value(),
            )
            self._lost = True
            return False
        return True


OUTBOX = Outbox()


async def _attach_flow_run(worker: EventsWorker, event: Event) -> None:
    """Names the flow run of a task run in the state that is told, which is all that the server needs.

    Prefect asks the server what the event is related to, and drops it where that does not answer. And `--watch` prints
    a line for every event that is related to the flow run: three a task would hide the lines of the log.
    """
    context = FlowRunContext.get()
    if "task_run" in event.payload and context is not None and context.flow_run is not None:
        event.payload["task_run"]["flow_run_id"] = str(context.flow_run.id)


def _may_pass(error: Exception) -> bool:
    """Whether the same entry may be taken later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429, 502, 503, 504)
    return isinstance(error, httpx.HTTPError)


@contextmanager
def sending() -> Iterator[None]:
    """For the body of a flow: what it tells Prefect goes through the outbox, and is sent when the block ends."""
    OUTBOX.open()
    try:
        yield
    finally:
        OUTBOX.flush(DRAIN_S)


def told(flow: Flow[..., Any], *arguments: Any, **parameters: Any) -> Any:
    """Runs the flow; returns what its function returns and raises what it raises, also where Prefect is lost by then.

    Raises ServerError where it was lost before the function began.
    """
    ended: Future[Any] = Future()
    function = flow.fn

    @wraps(function)
    def kept(*arguments: Any, **parameters: Any) -> Any:
        try:
            result = function(*arguments, **parameters)
        except BaseException as error:
            ended.set_exception(error)
            raise
        ended.set_result(result)
        return result

    OUTBOX.open()  # before Prefect sends anything itself
    flow = flow.with_options()
    flow.fn = kept
    try:
        try:
            flow(*arguments, **parameters)
        except httpx.HTTPError as error:
            if not ended.done():
                raise ServerError(f"Prefect at {PREFECT_API_URL.value()} was lost ({error}): run again") from error
        return ended.result()
    except TerminationSignal:  # what Prefect makes of SIGTERM
        raise KeyboardInterrupt from None


def create_table_artifact(rows: list[dict[str, Any]], key: str, description: str) -> None:
    """A table on the page of the task that calls this."""
    _create(TableArtifact, key, description, table=rows)


def create_markdown_artifact(markdown: str, key: str, description: str) -> None:
    """A text on the page of the task that calls this."""
    _create(MarkdownArtifact, key, description, markdown=markdown)


def create_link_artifact(link: str, key: str, link_text: str, description: str) -> None:
    """A link on the page of the task that calls this."""
    _create(LinkArtifact, key, description, link=link, link_text=link_text)


def _create(kind: type[Artifact], key: str, description: str, **content: Any) -> None:
    wanted = _request(kind, key, description, **content)
    OUTBOX.call(lambda client: client.create_artifact(wanted))


def _request(kind: type[Artifact], key: str, description: str, **content: Any) -> ArtifactCreate:
    task_run_id, flow_run_id = get_task_and_flow_run_ids()
    artifact = kind(key=_key(key), description=description, **content)
    return ArtifactCreate(
        type=artifact.type,
        key=artifact.key,
        description=artifact.description,
        data=artifact.format(),
        task_run_id=task_run_id,
        flow_run_id=flow_run_id,
    )


def _key(name: str) -> str:
    """`name` as Prefect takes a key: small letters of ASCII, digits and dashes.

    Punycode keeps names apart that differ in other letters.
    """
    ascii_name = name.lower().encode("punycode").decode().removesuffix("-")  # it ends what is ASCII with a dash
    return re.sub("[^a-z0-9]", "-", ascii_name)


def progress_page(key: str) -> Callable[[float, str], None]:
    """A progress artifact of the task that calls this, and what shows a share of 100 and a text there."""
    new = _request(ProgressArtifact, key, key, progress=0.0)
    latest = sent = ArtifactUpdate(data=0.0, description=key)
    artifact_id = None

    def send(client: SyncPrefectClient) -> None:
        nonlocal artifact_id, sent
        if artifact_id is None:
            artifact_id = client.create_artifact(new).id
        if (now := latest) is not sent:  # of many that waited only the last counts
            client.update_artifact(artifact_id, now)
            sent = now

    def show(share: float, text: str) -> None:
        nonlocal latest
        latest = ArtifactUpdate(data=share, description=text)
        OUTBOX.call(send)

    OUTBOX.call(send)
    return show
