"""The engine of a worker whose networks run in the device server."""

import os
import socket
import struct
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from serving import errors
from serving.bundle.images import Pixels
from serving.engine.base import Output
from serving.engine.remote.protocol import RunRequest, RunResult, SharedMemory
from serving.errors import EngineError, LenserveError, ModelUnavailable

# The supervisor holds the listening socket: connections wait there while a device server is replaced.
_LOAD_TIMEOUT_S = 300.0
_RUN_TIMEOUT_S = 30.0

_T = TypeVar("_T")


class RemoteEngine:
    """An `Engine`. If the device server dies during a call, the call is retried once, on its successor."""

    max_images_on_loop = 0  # the event loop must not wait for another process

    def __init__(self, device_server: Path, model_file: Path) -> None:
        """Store the options.

        Args:
            device_server: the Unix socket of the device server.
            model_file: an ONNX file.
        """
        self._device_server = device_server
        self._model_file = model_file
        self._one_at_a_time = threading.Lock()
        self._connection: _DeviceConnection | None = None

    @classmethod
    def load(cls, model_file: Path, *, device_server: Path) -> "RemoteEngine":
        """Have the device server load an ONNX file.

        Raises:
            BundleError: the file cannot be loaded, or is not a network of this project.
            DeviceUnavailable: the device cannot run it.
            ModelUnavailable: the device server does not answer.
        """
        engine = cls(device_server, model_file)
        engine._retry_once(engine._connect)
        return engine

    def run(self, images: Pixels) -> Output:
        """Run the network; see `Engine.run`.

        Raises:
            EngineError: the network failed.
            ModelUnavailable: the device server died twice, or does not answer.
        """
        with self._one_at_a_time:
            return self._retry_once(partial(self._run, images))

    def _retry_once(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except ConnectionError:  # the device server died: its successor accepts the next connection
            self._connection = None
        except OSError as error:
            self._connection = None
            raise _unreachable(error) from error
        try:
            return call()
        except OSError as error:
            self._connection = None
            raise _unreachable(error) from error

    def _run(self, images: Pixels) -> Output:
        if self._connection is not None:
            return self._connection.run(images)
        output = self._connect().run(images)
        output.interrupted = True
        return output

    def _connect(self) -> "_DeviceConnection":
        self._connection = connection = _DeviceConnection(self._device_server)
        connection.open(self._model_file)
        return connection


class _DeviceConnection:
    def __init__(self, device_server: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._memory = SharedMemory.create()
        weakref.finalize(self, _release, self._socket, self._memory)
        # A kernel timeout: with Python's, connecting would fail at once while the backlog is full.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_LOAD_TIMEOUT_S))
        self._socket.connect(str(device_server))

    def open(self, model_file: Path) -> None:
        self._socket.settimeout(_LOAD_TIMEOUT_S)
        name = os.fsencode(model_file)
        opening = RunRequest(0, len(name), 0, 0).pack()
        socket.send_fds(self._socket, [opening], [self._memory.descriptor])
        self._socket.sendall(name)
        self._receive_result()
        self._socket.settimeout(_RUN_TIMEOUT_S)

    def run(self, images: Pixels) -> Output:
        self._memory.write_images(images)
        self._socket.sendall(RunRequest(*images.shape).pack())
        return self._memory.output(self._receive_result())

    def _receive_result(self) -> RunResult:
        result = RunResult.unpack(self._receive(RunResult.layout.size))
        if result.error_bytes:
            kind, _, message = self._receive(result.error_bytes).decode(errors="replace").partition(": ")
            error = vars(errors).get(kind, EngineError)
            raise error(message) if issubclass(error, LenserveError) else EngineError(message)
        return result

    def _receive(self, length: int) -> bytes:
        data = self._socket.recv(length, socket.MSG_WAITALL)
        if len(data) < length:
            raise ConnectionResetError("the connection was closed")
        return data


def _release(connection: socket.socket, memory: SharedMemory) -> None:
    connection.close()
    memory.close()


def _timeval(seconds: float) -> bytes:
    """A struct timeval: seconds and microseconds."""
    return struct.pack("@ll", *divmod(round(seconds * 1e6), 10**6))


def _unreachable(error: OSError) -> ModelUnavailable:
    return ModelUnavailable(f"the device server does not answer: {error}")
