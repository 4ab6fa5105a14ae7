"""Sessions for asyncio."""

from __future__ import annotations

import asyncio
import io
import socket
import time
from datetime import datetime
from types import TracebackType
from typing import (
    Any,
    AsyncIterator,
    BinaryIO,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from . import _codec as codec
from . import _requests as requests
from . import _shapes as shapes
from ._endpoint import Endpoint, parsed
from ._errors import CLOSED, DeadlinePassed, ProtocolError, Unreachable
from ._socket import dial
from ._stream import PIECE, Completed, Output

T = TypeVar("T")
S = TypeVar("S", bound="_AsyncClosing")


class _AsyncClosing:
    """Closed at the end of an `async with`."""

    async def close(self) -> None:
        raise NotImplementedError

    async def __aenter__(self: S) -> S:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.close()


class AsyncSession(_AsyncClosing):
    """A connection to an agent, as `Session` is. Requests are answered one after the other: one task at a
    time asks. After a request was cancelled, or an error that is no `AgentError`, it is of no further
    use."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        early: bytes = b"",
        timeout: float = 10.0,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = codec.Decoder()
        self._decoder.feed(early)
        self.timeout = timeout
        #: The number of the last request, which each frame of its answer carries.
        self._id = 0
        self._is_closed = False

    @classmethod
    async def connect(
        cls, endpoint: Endpoint, *, connect_timeout: float = 2.0, timeout: float = 10.0
    ) -> AsyncSession:
        """Opens one. A VM that is paused or frozen must not be dialled."""
        # In a thread, which finishes the handshake also when this is cancelled.
        until = time.monotonic() + connect_timeout
        loop = asyncio.get_running_loop()
        dialling = loop.run_in_executor(None, dial, parsed(endpoint), until)
        try:
            stream, early = await asyncio.shield(dialling)
        except asyncio.CancelledError:
            dialling.add_done_callback(_close_unwanted)
            raise
        try:
            reader, writer = await asyncio.open_connection(sock=stream)
        except BaseException:
            stream.close()
            raise
        return cls(reader, writer, early, timeout)

    async def close(self) -> None:
        """Ends the connection, both directions at once; and with it what was asked for."""
        self._is_closed = True
        self._writer.transport.abort()

    # --- requests ---------------------------------------------------------------------------------

    async def ping(self) -> None:
        await self._ask(requests.ping())

    async def hello(self) -> shapes.Hello:
        return await self._ask(requests.hello())

    async def status(self) -> shapes.Status:
        return await self._ask(requests.status())

    async def inspect(self) -> shapes.Inspect:
        return await self._ask(requests.inspect())

    async def check_integration(
        self, name: str, *, at_most: float = 60.0
    ) -> shapes.IntegrationStatus:
        """Runs a health check now, which may take so many seconds."""
        return await self._ask(requests.check_integration(name, at_most))

    async def check_probe(self, name: str, *, at_most: float = 60.0) -> shapes.ProbeStatus:
        """Runs a probe now, which may take so many seconds."""
        return await self._ask(requests.check_probe(name, at_most))

    async def reload(self) -> shapes.Reloaded:
        return await self._ask(requests.reload())

    async def watch(self, *, heartbeat_secs: float = 15.0) -> AsyncWatch:
        """What changes, as it changes. The session belongs to it from then on."""
        status = await self._ask(requests.watch(heartbeat_secs))
        return AsyncWatch(self, heartbeat_secs, status)

    async def sleep_prep(
        self,
        *,
        token: Optional[str] = None,
        deadline_secs: float = 60.0,
        lease_secs: float = 600.0,
        require_freeze: bool = False,
    ) -> shapes.Ready:
        """Makes the guest ready for a snapshot. Close all connections to it then, before it is paused."""
        asked = requests.sleep_prep(token, deadline_secs, lease_secs, require_freeze)
        return await self._ask(asked)

    async def wake(
        self,
        *,
        token: Optional[str] = None,
        cause: str = "restored",
        clone: bool = False,
        wall_clock: Optional[datetime] = None,
        entropy: Optional[bytes] = None,
        payload: Optional[Mapping[str, Any]] = None,
    ) -> shapes.Awake:
        """Tells the guest that it runs again: with this machine's time and, if it was restored, fresh
        random bytes, unless others are given."""
        asked = requests.wake(token, cause, clone, wall_clock, entropy, payload)
        return await self._ask(asked)

    # --- development guests -----------------------------------------------------------------------

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[Union[str, int]] = None,
        tty: Optional[Mapping[str, int]] = None,
        stdin: bool = False,
        timeout_secs: Optional[float] = None,
    ) -> AsyncCommand:
        """Runs a command. The session belongs to it until it has ended."""
        return await self._begin(
            requests.exec_(argv, env, cwd, user, tty, stdin, timeout_secs, False)
        )

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: Optional[bytes] = None,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[Union[str, int]] = None,
        timeout_secs: Optional[float] = None,
        max_output: int = 16 << 20,
    ) -> Completed:
        """Runs a command to its end, and gives all that it printed; `ProtocolError` if that is more than
        `max_output` bytes."""
        has_input = input is not None
        async with await self.exec(
            argv, env=env, cwd=cwd, user=user, stdin=has_input, timeout_secs=timeout_secs
        ) as command:
            return await command.run_to_end(input, max_output)

    async def start_job(
        self,
        argv: Sequence[str],
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[Union[str, int]] = None,
        tty: Optional[Mapping[str, int]] = None,
        timeout_secs: Optional[float] = None,
    ) -> shapes.JobStarted:
        """Runs a command that goes on without the session."""
        body = requests.exec_(argv, env, cwd, user, tty, False, timeout_secs, True)
        return await self._ask(requests.Request(body, "job-started", shapes.JobStarted.read))

    async def jobs(self) -> Sequence[shapes.Job]:
        return (await self._ask(requests.jobs())).jobs

    async def job_signal(self, job: int, signal: str = "TERM") -> None:
        await self._ask(requests.job_signal(job, signal))

    async def attach(self, job: int, *, follow: bool = True) -> AsyncCommand:
        """What a job has printed, and prints from now on."""
        return await self._begin({"type": "attach", "job": job, "follow": follow})

    async def put(
        self,
        path: str,
        content: Union[bytes, BinaryIO],
        *,
        mode: Optional[int] = None,
        name: Optional[str] = None,
        archive: bool = False,
    ) -> shapes.PutDone:
        """Writes a file, whole or not at all; with `archive` the content is a tar stream of the entries
        of a folder that becomes `path`. A file of this machine is read in this task."""
        await self._ask(requests.put(path, mode, name, archive))
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        while True:
            piece = source.read(PIECE)
            if not piece:
                break
            await self._send(codec.encode_data(codec.CONTENT, piece))
        end = {"type": "put-end"}
        await self._send(codec.encode(end), self.timeout)
        return await self._answered(requests.Request(end, "put-done", shapes.PutDone.read, 60.0))

    async def get(self, path: str, *, archive: bool = False) -> bytes:
        """Reads a file, or with `archive` a folder's entries as a tar stream, into memory."""
        into = io.BytesIO()
        await self.get_to(path, into, archive=archive)
        return into.getvalue()

    async def get_to(
        self, path: str, into: BinaryIO, *, archive: bool = False
    ) -> shapes.GetStarted:
        """The same into a file. What was written is not the whole content if this raises."""
        started = await self._ask(requests.get(path, archive))
        written = 0
        while True:
            frame = await self._next()
            if isinstance(frame, codec.Data):
                into.write(frame.content)
                written += len(frame.content)
                continue
            done = shapes.GetDone.read(self._answer(frame, "get-done"))
            if written != done.bytes:
                raise ProtocolError(f"{path}: {written} of {done.bytes} bytes have come")
            return started

    async def forward(self, port: int) -> AsyncForward:
        """Joins the session to a TCP port on the guest's loopback."""
        await self._ask(requests.forward(port))
        return AsyncForward(self)

    # --- frames -----------------------------------------------------------------------------------

    async def _begin(self, body: Mapping[str, Any]) -> AsyncCommand:
        started = requests.Request(body, "exec-started", shapes.ExecStarted.read)
        return AsyncCommand(self, (await self._ask(started)).pid)

    async def _ask(self, request: requests.Request[T]) -> T:
        self._id += 1
        await self._send(codec.encode({**request.body, "id": self._id}), self.timeout)
        return await self._answered(request)

    async def _answered(self, request: requests.Request[T]) -> T:
        frame = await self._next(self.timeout + request.extra)
        return request.read(self._answer(frame, request.answer))

    def _answer(self, frame: codec.Frame, *types: str) -> Mapping[str, Any]:
        """The frame as one of these answers to the last request."""
        return codec.answer(frame, *types, id=self._id)

    async def _send(self, frame: bytes, at_most: Optional[float] = None) -> None:
        if self._is_closed:
            raise Unreachable(CLOSED)
        try:
            self._writer.write(frame)
            await asyncio.wait_for(self._writer.drain(), at_most)
        except asyncio.TimeoutError:
            raise DeadlinePassed("the agent does not read") from None
        except OSError as error:
            raise self._ended(f"the connection was ended: {error}") from error

    async def _next(self, at_most: Optional[float] = None) -> codec.Frame:
        try:
            return await asyncio.wait_for(self._read(), at_most)
        except asyncio.TimeoutError:
            raise DeadlinePassed("no answer within the deadline") from None

    async def _read(self) -> codec.Frame:
        while True:
            if self._is_closed:
                raise Unreachable(CLOSED)
            frame = self._decoder.next()
            if frame is not None:
                return frame
            try:
                piece = await self._reader.read(PIECE)
            except OSError as error:
                raise self._ended(f"the connection was ended: {error}") from error
            if not piece:
                whole = "" if self._decoder.size == 0 else " in the middle of a frame"
                raise self._ended(f"the agent has ended the connection{whole}")
            self._decoder.feed(piece)

    def _ended(self, how: str) -> Unreachable:
        """The connection has ended so, unless another task has closed the session meanwhile."""
        return Unreachable(CLOSED if self._is_closed else how)


def _close_unwanted(dialled: "asyncio.Future[Tuple[socket.socket, bytes]]") -> None:
    if not dialled.cancelled() and dialled.exception() is None:
        dialled.result()[0].close()


class AsyncWatch(_AsyncClosing):
    """An iterator over what changes; heartbeats are left out. `DeadlinePassed` after three missed ones:
    the guest, or the way to it, is gone."""

    def __init__(
        self, session: AsyncSession, heartbeat_secs: float, status: shapes.Status
    ) -> None:
        self._session = session
        self._silence = 3 * heartbeat_secs
        #: What the guest was like when the watch began.
        self.status: shapes.Status = status

    async def close(self) -> None:
        await self._session.close()

    def __aiter__(self) -> AsyncIterator[shapes.Event]:
        return self

    async def __anext__(self) -> shapes.Event:
        while True:
            frame = await self._session._next(self._silence)
            event = shapes.Event.read(self._session._answer(frame, "event"))
            if not event.heartbeat:
                return event


class AsyncCommand(_AsyncClosing):
    """A command that runs: an iterator over what it prints, in the order in which it was read. Other tasks
    may write to it meanwhile."""

    def __init__(self, session: AsyncSession, pid: int) -> None:
        self._session = session
        #: Its process id, which is also its process group's.
        self.pid = pid
        #: How it ended, once all that it printed was read.
        self.exited: Optional[shapes.ExecExited] = None

    async def close(self) -> None:
        """Ends the connection if the command has not ended, and with it the command; a job goes on."""
        if self.exited is None:
            await self._session.close()

    def __aiter__(self) -> AsyncIterator[Output]:
        return self

    async def __anext__(self) -> Output:
        if self.exited is not None:
            raise StopAsyncIteration
        frame = await self._session._next()
        if isinstance(frame, codec.Data):
            return Output(frame.channel, frame.content)
        self.exited = shapes.ExecExited.read(self._session._answer(frame, "exec-exited"))
        raise StopAsyncIteration

    async def wait(self) -> shapes.ExecExited:
        """Drops what it prints, and says how it ended."""
        async for _ in self:
            pass
        assert self.exited is not None
        return self.exited

    async def write(self, content: bytes) -> None:
        """Input, for a command with `stdin`."""
        await _send_content(self._session, content)

    async def close_stdin(self) -> None:
        await self._control({"type": "stdin-close"})

    async def signal(self, name: str) -> None:
        """To its process group, a name without SIG; KILL to all that it started."""
        await self._control({"type": "signal", "signal": name})

    async def resize(self, cols: int, rows: int) -> None:
        await self._control({"type": "resize", "cols": cols, "rows": rows})

    async def _control(self, body: Mapping[str, Any]) -> None:
        await self._session._send(codec.encode(body), self._session.timeout)

    async def run_to_end(self, input: Optional[bytes], max_output: int) -> Completed:
        """Sends all of the input, and collects all of the output."""

        async def feed() -> None:
            if input is not None:
                await self.write(input)
                await self.close_stdin()

        feeding = asyncio.ensure_future(feed())
        printed = {codec.STDOUT: bytearray(), codec.STDERR: bytearray()}
        try:
            async for output in self:
                printed.setdefault(output.stream, bytearray()).extend(output.content)
                if sum(map(len, printed.values())) > max_output:
                    raise ProtocolError(f"the command printed more than {max_output} bytes")
            await feeding
        finally:
            feeding.cancel()
        assert self.exited is not None
        return Completed(
            bytes(printed[codec.STDOUT]), bytes(printed[codec.STDERR]), self.exited
        )


class AsyncForward(_AsyncClosing):
    """A connection to a port on the guest's loopback."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._port_has_ended = False
        #: How many bytes went each way, once both sides have ended.
        self.done: Optional[shapes.ForwardDone] = None

    async def close(self) -> None:
        if self.done is None:
            await self._session.close()

    async def send(self, content: bytes) -> None:
        await _send_content(self._session, content)

    async def end(self) -> None:
        """Says that nothing more is sent."""
        await self._session._send(codec.encode({"type": "forward-end"}), self._session.timeout)

    async def recv(self) -> bytes:
        """What the port sends next; empty at its end."""
        while self.done is None:
            frame = await self._session._next()
            if isinstance(frame, codec.Data):
                return frame.content
            body = self._session._answer(frame, "forward-end", "forward-done")
            if body["type"] == "forward-done":
                self.done = shapes.ForwardDone.read(body)
            elif not self._port_has_ended:
                self._port_has_ended = True
                return b""
        return b""


async def _send_content(session: AsyncSession, content: bytes) -> None:
    view = memoryview(content)
    for at in range(0, len(view), PIECE):
        piece = bytes(view[at : at + PIECE])
        await session._send(codec.encode_data(codec.STDIN, piece))
