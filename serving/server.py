"""The composition root: builds the server from its settings, starts it and stops it gracefully."""

import asyncio
import logging
import math
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from serving.addresses import join_address
from serving.admin.http_server import HttpServer
from serving.batching.policy import BatchPolicy
from serving.bundle import Repository
from serving.bundle.decoder_messages import silence_decoders
from serving.capture.capture import Capture, check_capture_folder
from serving.capture.choice import CapturePolicy
from serving.capture.folder import CaptureFolder
from serving.classify.classifier import Classifier
from serving.engine.base import Device, batch_buckets
from serving.engine.devices import find_device
from serving.engine.remote.client import RemoteEngine
from serving.engine.tuning import load_tuned
from serving.errors import UsageError
from serving.event_loop import LoopMonitor
from serving.limited_files import describe_failure
from serving.logs import dropped_lines
from serving.metrics.recorder import Metrics
from serving.metrics.shared_counts import SharedCounts
from serving.models.change_watch import LOOK_INTERVAL_S
from serving.models.loader import VersionLoader
from serving.models.low_priority import low_priority_threads
from serving.models.precision import choose_precision, read_cpu_flags
from serving.models.readiness import Readiness
from serving.models.registry import PATIENCE_S, STUCK_S, Models
from serving.rpc.access_log import AccessLog
from serving.rpc.bearer_tokens import Tokens
from serving.rpc.handlers import Handler
from serving.rpc.middleware import Middleware
from serving.rpc.open_inference.shared_memory import Regions
from serving.rpc.routes import Rpc, services
from serving.rpc.services import classifier as classifier_service
from serving.rpc.services import inference as inference_service
from serving.rpc.services.classifier import ClassifierService
from serving.rpc.services.health import HealthService
from serving.rpc.services.inference import InferenceService
from serving.rpc.services.reflection import reflection_rpcs
from serving.rpc.services.repository import RepositoryService
from serving.rpc.services.shared_memory import SharedMemoryService
from serving.settings import ServerSettings
from serving.transports.changed_files import ChangedFiles
from serving.transports.connection_accepting import fit_connections
from serving.transports.grpc_aio.server import GrpcServer
from serving.transports.http.asgi import REFUSAL_REASONS
from serving.transports.http.limits import Limits
from serving.transports.rpc_over_http.server import H2Server
from serving.transports.tls import TlsFiles
from serving.turns import Turns

_REPOSITORY_LIMIT_S = 5.0
_REREAD_LIMIT_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and its parts."""

    settings: ServerSettings
    device: Device
    metrics: Metrics
    models: Models
    classifier: Classifier
    middleware: Middleware
    grpc: GrpcServer | H2Server
    http: HttpServer | None  # None in a worker: the supervisor serves HTTP
    files: Sequence[ChangedFiles] = ()  # tokens and certificates

    @property
    def open_connections(self) -> int:
        """Of clients; 0 for the transport grpc, whose core does not say."""
        return self.grpc.open_connections if isinstance(self.grpc, H2Server) else 0

    async def reread(self) -> None:
        """Look for changed files now, and not at the next interval."""
        _log.info("rereading", extra={"reason": "SIGHUP", "repository": str(self.settings.repository)})
        looks = [asyncio.create_task(asyncio.to_thread(each.look)) for each in self.files]
        try:
            await self.models.refresh()
        except Exception as error:  # noqa: BLE001 - it is tried again at the next interval
            _log.warning("repository_unreadable", extra={"reason": describe_failure(error)})
        if looks:
            await asyncio.wait(looks, timeout=_REREAD_LIMIT_S)  # their volume may hang

    async def stop(self, *, lame_duck: bool = True) -> None:
        """Become not ready, serve for another lame_duck_s, then reject new calls and finish running ones."""
        lame_duck_s = self.settings.lame_duck_s if lame_duck else 0
        _log.info("stopping", extra={"lame_duck_s": lame_duck_s})
        self.models.drain()
        await asyncio.sleep(lame_duck_s)
        await self.grpc.stop(until=self.middleware.drain, timeout_s=self.settings.drain_timeout_s)
        _log.info("stopped")


@asynccontextmanager
async def run_server(
    settings: ServerSettings,
    *,
    device_server: Path | None = None,
    worker_socket: socket.socket | None = None,
    counts: SharedCounts | None = None,
    worker: int = 0,
    repository_limit_s: float = _REPOSITORY_LIMIT_S,
) -> AsyncIterator[Server]:
    """Start a server. It listens when this yields, and becomes ready when its models are loaded.

    A worker has no HTTP port, and scans the repository before it listens.

    Args:
        settings: options of the server.
        device_server: the Unix socket of the device server; without it this process runs the networks.
        worker_socket: delivers connections that the supervisor accepts; without it this process listens.
        counts: counters shared with the other workers.
        worker: number of this worker.
        repository_limit_s: seconds to look whether there is a repository.

    Raises:
        UsageError: the repository, the token file or a TLS file is missing or invalid.
        DeviceUnavailable: CUDA was requested but is not available.
        AddressUnavailable: a port is taken.
    """
    loop = asyncio.get_running_loop()
    check = loop.run_in_executor(None, _check_repository, settings)
    await asyncio.wait([check], timeout=repository_limit_s)
    if check.done():  # one that hangs is reported as not ready
        check.result()
    silence_decoders()
    device = find_device(settings.device, allow_tf32=settings.allow_tf32, cuda_graphs=settings.cuda_graphs)
    metrics = Metrics(counts, drift_window_s=settings.drift_window_s)
    metrics.device.labels(device.name, device.provider).set(1)
    tokens, watched = _tokens(settings, lambda: loop.call_soon_threadsafe(models.wake_watchers))
    turns = Turns()
    access_log = AccessLog(settings.access_log_sample) if settings.access_log_sample else None
    middleware = Middleware(metrics, tokens, turns=turns, access_log=access_log)
    metrics.event_loop_tasks.labels().set_function(lambda: len(asyncio.all_tasks(loop)))
    async with AsyncExitStack() as stack:
        monitor = await stack.enter_async_context(_monitor(settings, metrics))
        regions = await stack.enter_async_context(
            Regions(settings.shared_memory_pattern, max_bytes=settings.max_message_bytes)
        )
        models = await stack.enter_async_context(
            open_models(settings, device, metrics, device_server=device_server)
        )
        capture = _capture(settings, metrics, worker)
        if capture is not None:
            await stack.enter_async_context(capture)
        classifier = await stack.enter_async_context(_classifier(settings, models, metrics, turns, capture))
        http: HttpServer | None = None
        if not settings.supervised:
            http = await stack.enter_async_context(_http(settings, models, metrics, monitor))
        else:
            await models.scanned()
        table = build_table(classifier, models, metrics, regions, model_control=settings.model_control)
        handlers = [middleware.wrap(rpc) for rpc in table]
        tls = _tls(settings)
        if tls is not None:
            watched.append(ChangedFiles(tls.all, lambda: grpc.reload_tls()))  # noqa: PLW0108 - it comes later
        grpc = _grpc(settings, handlers, worker_socket, middleware, metrics, tls=tls)
        await stack.enter_async_context(grpc)
        await stack.enter_async_context(_watching(watched, settings.poll_interval_s))
        _log_choices(settings, device, grpc, http)
        yield Server(settings, device, metrics, models, classifier, middleware, grpc, http, watched)


def check_files(settings: ServerSettings) -> None:
    """Check the files that the settings name, except what is in the repository.

    Raises:
        UsageError: the repository, the token file, a TLS file or the folder for captured images is missing or
            invalid.
    """
    _check_repository(settings)
    _tokens(settings)
    _tls(settings)
    if settings.capture_dir is not None:
        check_capture_folder(settings.capture_dir)


def _check_repository(settings: ServerSettings) -> None:
    try:
        is_folder = settings.repository_folder.is_dir()
    except OSError as error:
        raise UsageError(f"the repository {describe_failure(error)}") from error
    if not is_folder:
        raise UsageError(
            f"the repository {settings.repository} is not a directory: create it, or set another --repository"
        )


def build_table(
    classifier: Classifier,
    models: Models,
    metrics: Metrics,
    regions: Regions | None = None,
    *,
    model_control: bool = False,
) -> Sequence[Rpc]:
    """Return all RPCs of the server."""
    regions = regions or Regions()
    our_services = (classifier_service.SERVICE, inference_service.SERVICE)
    rows = (
        *ClassifierService(classifier).rpcs(),
        *InferenceService(classifier, models, metrics, regions).rpcs(),
        *RepositoryService(models, model_control=model_control, turns=classifier.turns).rpcs(),
        *SharedMemoryService(regions).rpcs(),
        *HealthService(models, our_services, classifier.turns).rpcs(),
    )
    return (*rows, *reflection_rpcs(services(rows), classifier.turns))


def _tokens(
    settings: ServerSettings, on_replaced: Callable[[], object] = lambda: None
) -> tuple[Tokens | None, list[ChangedFiles]]:
    file = settings.token_file
    if file is None:
        return None, []

    def reload() -> None:  # in a thread
        tokens.replace(Tokens.read(file))
        on_replaced()

    watched = ChangedFiles([file], reload)
    tokens = Tokens.read(file)
    return tokens, [watched]


@asynccontextmanager
async def _watching(watched: Sequence[ChangedFiles], interval_s: float) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.watch(interval_s)) for each in watched]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _tls(settings: ServerSettings) -> TlsFiles | None:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    files = TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
    files.check()
    return files


def open_models(
    settings: ServerSettings,
    device: Device,
    metrics: Metrics,
    *,
    device_server: Path | None = None,
    stuck_s: float = STUCK_S,
) -> Models:
    """Return the models of a server, not started yet.

    Args:
        settings: options of the server.
        device: where networks run.
        metrics: of the server.
        device_server: as for `run_server`.
        stuck_s: seconds without progress after which the start waits for no more models.
    """
    size = settings.max_batch_size
    loader = VersionLoader(
        Repository(settings.repository_folder),
        partial(
            load_tuned,
            device=device,
            threads=settings.engine_threads,
            cores=settings.cores,
            max_batch_size=size,
        )
        if device_server is None
        else partial(RemoteEngine.load, device_server=device_server),
        policy=BatchPolicy(size, settings.max_queue_delay_s),
        warm_sizes=batch_buckets(device, size) or (1, size),
        metrics=metrics,
        precision=choose_precision(settings.precision, device, read_cpu_flags()),
    )
    return Models(
        loader,
        poll_interval_s=settings.poll_interval_s,
        parallel_loads=settings.cores,
        readiness=Readiness(tuple(settings.require_model), is_strict=settings.readiness == "strict"),
        keep_warm_s=settings.keep_warm_s,
        hung_run_s=settings.hung_run_s,
        look_interval_s=LOOK_INTERVAL_S,
        # Loads in the device server, which cannot be seen here, are waited for.
        stuck_s=stuck_s if device_server is None else PATIENCE_S,
        # With more threads of ONNX Runtime, these would inherit the priority of the thread that loads.
        background=low_priority_threads() if device.kind == "cpu" and settings.one_engine_thread else None,
    )


def _capture(settings: ServerSettings, metrics: Metrics, worker: int) -> Capture | None:
    if settings.capture_dir is None:
        return None
    check_capture_folder(settings.capture_dir)
    folder = CaptureFolder(
        settings.capture_dir,
        worker=worker,
        workers=settings.processes,
        max_bytes=settings.capture_max_bytes // settings.processes,
        max_age_s=settings.capture_max_age_s,
    )
    policy = CapturePolicy(
        rate=settings.capture_rate,
        below_confidence=settings.capture_below_confidence or math.inf,
        below_margin=settings.capture_below_margin or math.inf,
    )
    return Capture(folder, policy, metrics)


def _classifier(
    settings: ServerSettings, models: Models, metrics: Metrics, turns: Turns, capture: Capture | None
) -> Classifier:
    return Classifier(
        models,
        metrics=metrics,
        limits=settings.image_limits,
        max_images=settings.max_images,
        max_pending_images=settings.max_pending_images,
        max_queue_s=settings.max_queue_s,
        default_top_k=settings.default_top_k,
        decode_threads=settings.decoders,
        turns=turns,
        capture=capture,
    )


def _monitor(settings: ServerSettings, metrics: Metrics) -> LoopMonitor:
    dropped, counted = metrics.dropped_log_lines.labels(), 0

    def count_dropped_lines() -> None:
        nonlocal counted
        now = dropped_lines()
        dropped.value += now - counted
        counted = now

    monitor = LoopMonitor(hung_after_s=settings.hung_after_s, on_tick=count_dropped_lines)
    metrics.event_loop_lag.labels().set_function(lambda: monitor.largest_lag_s)
    return monitor


def _http(settings: ServerSettings, models: Models, metrics: Metrics, monitor: LoopMonitor) -> HttpServer:
    return HttpServer(
        host=settings.http_address,
        port=settings.http_port,
        registry=metrics.registry,
        why_not_live=lambda: monitor.problem or models.why_broken,
        why_not_ready=lambda: monitor.problem or models.why_not_ready,
    )


def _grpc(
    settings: ServerSettings,
    handlers: Sequence[Handler],
    worker_socket: socket.socket | None,
    middleware: Middleware,
    metrics: Metrics,
    *,
    tls: TlsFiles | None,
) -> GrpcServer | H2Server:
    if settings.transport == "grpc":
        return GrpcServer(
            handlers,
            host=settings.host,
            port=settings.grpc_port,
            max_message_bytes=settings.max_message_bytes,
            limits=_limits(settings, settings.max_connections),
            tls=tls,
            reject_unknown=middleware.reject_unknown,
            shares_port=settings.supervised,
        )
    # The supervisor passes connections to the worker with the fewest.
    max_connections = fit_connections(math.ceil(settings.max_connections / settings.processes))
    server = H2Server(
        handlers,
        host=settings.host,
        port=settings.grpc_port,
        max_message_bytes=settings.max_message_bytes,
        limits=_limits(settings, max_connections),
        tls=tls,
        reject_unknown=middleware.reject_unknown,
        turns=middleware.turns,
        worker_socket=worker_socket,
        on_refused_connection=metrics.refused_connections.labels().add_one,
        on_refused_request=lambda reason: metrics.refused_requests.labels(reason).add_one(),
    )
    for reason in REFUSAL_REASONS:  # shown at 0 from the start, for alerts
        metrics.refused_requests.labels(reason)
    metrics.open_connections.labels().set_function(lambda: server.open_connections)
    metrics.pending_bytes.labels().set_function(lambda: server.pending_bytes)
    return server


def _limits(settings: ServerSettings, max_connections: int) -> Limits:
    """Return the limits on the clients of this process."""
    return Limits(
        max_pending_bytes=settings.max_pending_bytes,
        max_connections=max_connections,
        idle_timeout_s=settings.idle_timeout_s,
        max_connection_age_s=settings.max_connection_age_s or math.inf,
        max_connection_age_grace_s=settings.max_connection_age_grace_s,
    )


def _log_choices(
    settings: ServerSettings, device: Device, grpc: GrpcServer | H2Server, http: HttpServer | None
) -> None:
    choice = {"device": device.name, "provider": device.provider, "reason": device.reason}
    if device.kind == "cuda":
        choice["fp32_products"] = "tf32" if device.allow_tf32 else "fp32"
        choice["cuda_graphs"] = "on" if device.cuda_graphs else "off"
    _log.info("device_chosen", extra=choice)
    if settings.precision == "fp16" and device.kind == "cpu":
        reason = "a CPU runs FP16 files in FP32: their golden examples prove nothing about FP16 on a GPU"
        _log.warning("fp16_not_proven", extra={"device": device.name, "reason": reason})
    batching = {"max_batch_size": settings.max_batch_size, "max_queue_delay_s": settings.max_queue_delay_s}
    _log.info("batching_chosen", extra={**batching, "engine_threads": settings.engine_threads})
    if settings.token_file is None:
        _log.info("tokens_off", extra={"reason": "no token_file"})
    addresses = {"grpc": join_address(grpc.host, grpc.port)}
    if http is not None:
        addresses["http"] = join_address(http.host, http.port)
    wire = {"transport": settings.transport, "tls": settings.tls_cert_file is not None}
    _log.info("listening", extra={**addresses, **wire, "repository": settings.repository})
