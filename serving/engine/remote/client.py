"""A network that runs in the device server: the engine of a worker."""

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
from serving.engine.remote.protocol import Memory, Run, RunResult
from serving.errors import EngineError, LenserveError, ModelUnavailable

# The socket is the supervisor's: a new device server finds there what waits for it.
_LOAD_PATIENCE_S = 300.0
_RUN_PATIENCE_S = 30.0


_T = TypeVar("_T")


class RemoteEngine:
    """An `Engine`. If the device server dies during a call, its successor is asked once more."""

    max_images_on_loop = 0  # the event loop must not wait for another process

    def __init__(self, device_server: Path, model_file: Path) -> None:
        """Store the options.

        Args:
            device_server: the Unix socket that it listens on.
            model_file: an ONNX file.
        """
        self._device_server = device_server
        self._model_file = model_file
        self._one_at_a_time = threading.Lock()
        self._connection: _DeviceConnection | None = None

    @classmethod
    def load(cls, model_file: Path, *, device_server: Path) -> "RemoteEngine":
        """Let the device server load an ONNX file.

        Raises:
            BundleError: it is no graph of ours.
            DeviceUnavailable: the session is not on the device.
            ModelUnavailable: the device server does not answer.
        """
        engine = cls(device_server, model_file)
        engine._twice(engine._connect)
        return engine

    def run(self, images: Pixels) -> Output:
        """Run the network; see `Engine.run`.

        Raises:
            EngineError: the network failed.
            ModelUnavailable: the device server died twice, or does not answer.
        """
        with self._one_at_a_time:
            return self._twice(partial(self._run, images))

    def _twice(self, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except ConnectionError:  # the device server died: its successor finds us waiting
            self._connection = None
        except OSError as error:
            self._connection = None
            raise _gone(error) from error
        try:
            return ask()
        except OSError as error:
            self._connection = None
            raise _gone(error) from error

    def _run(self, images: Pixels) -> Output:
        connection = self._connection or self._connect()
        return connection.run(images)

    def _connect(self) -> "_DeviceConnection":
        self._connection = connection = _DeviceConnection(self._device_server)
        connection.open(self._model_file)
        return connection


class _DeviceConnection:
    def __init__(self, device_server: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._memory = Memory.create()
        weakref.finalize(self, _leave, self._socket, self._memory)
        # The kernel's limit: with Python's, a Unix socket does not wait at all where the backlog is full.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_LOAD_PATIENCE_S))
        self._socket.connect(str(device_server))

    def open(self, model_file: Path) -> None:
        self._socket.settimeout(_LOAD_PATIENCE_S)
        name = os.fsencode(model_file)
        opening = Run(0, len(name), 0, 0).pack()
        socket.send_fds(self._socket, [opening], [self._memory.descriptor])
        self._socket.sendall(name)
        self._answer()
        self._socket.settimeout(_RUN_PATIENCE_S)

    def run(self, images: Pixels) -> Output:
        self._memory.write_images(images)
        self._socket.sendall(Run(*images.shape).pack())
        return self._memory.output(self._answer())

    def _answer(self) -> RunResult:
        answer = RunResult.unpack(self._received(RunResult.layout.size))
        if answer.words_bytes:
            kind, _, message = self._received(answer.words_bytes).decode(errors="replace").partition(": ")
            error = vars(errors).get(kind, EngineError)
            raise error(message) if issubclass(error, LenserveError) else EngineError(message)
        return answer

    def _received(self, length: int) -> bytes:
        data = self._socket.recv(length, socket.MSG_WAITALL)
        if len(data) < length:
            raise ConnectionResetError("the connection ended")
        return data


def _leave(connection: socket.socket, memory: Memory) -> None:
    connection.close()
    memory.close()


def _timeval(seconds: float) -> bytes:
    """As the kernel takes it: whole seconds, and microseconds."""
    return struct.pack("@ll", *divmod(round(seconds * 1e6), 10**6))


def _gone(error: OSError) -> ModelUnavailable:
    return ModelUnavailable(f"the device server does not answer: {error}")
