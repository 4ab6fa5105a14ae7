"""Sessions that block."""

from __future__ import annotations

import io
import select
import socket
import time
from datetime import datetime
from types import TracebackType
from typing import Any, BinaryIO, Iterator, Mapping, Optional, Sequence, Tuple, Type, TypeVar, Union

from . import _codec as codec
from . import _requests as requests
from . import _shapes as shapes
from ._endpoint import Endpoint, parsed
from ._errors import CLOSED, ProtocolError, Unreachable
from ._socket import dial, left
from ._stream import PIECE, Completed, Output

T = TypeVar("T")
S = TypeVar("S", bound="_Closing")

#: How many bytes are kept that came while something was sent.
_MAX_UNREAD = 32 << 20


class _Closing:
    """Closed at the end of a `with`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


def _ready(
    stream: socket.socket, *, reads: bool, writes: bool, wait: Optional[float]
) -> Tuple[bool, bool]:
    """Whether it can be read and written, within so many seconds. By poll(2): select(2) knows no
    descriptor over 1023."""
    poll = select.poll()
    poll.register(stream, (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0))
    events = poll.poll(None if wait is None else wait * 1000)
    happened = events[0][1] if events else 0
    # What has ended says so when it is read or written.
    ended = happened & (select.POLLHUP | select.POLLERR) != 0
    return (
        reads and (happened & select.POLLIN != 0 or ended),
        writes and (happened & select.POLLOUT != 0 or ended),
    )


class Session(_Closing):
    """A connection to an agent. Requests are answered one after the other; not to be used by several
    threads at once. After an error that is no `AgentError` it is of no further use."""

    def __init__(self, stream: socket.socket, early: bytes = b"", timeout: float = 10.0) -> None:
        """Of a connection on which the handshake is done. `timeout` is how many seconds an answer may
        take, on top of what a request asks for itself."""
        self._stream = stream
        self._stream.setblocking(False)
        self._decoder = codec.Decoder()
        self._decoder.feed(early)
        self.timeout = timeout
        #: The number of the last request, which each frame of its answer carries.
        self._id = 0

    @classmethod
    def connect(
        cls, endpoint: Endpoint, *, connect_timeout: float = 2.0, timeout: float = 10.0
    ) -> Session:
        """Opens one. A VM that is paused or frozen must not be dialled."""
        stream, early = dial(parsed(endpoint), time.monotonic() + connect_timeout)
        return cls(stream, early, timeout)

    def close(self) -> None:
        """Ends the connection, both directions at once; and with it what was asked for."""
        self._stream.close()

    # --- requests ---------------------------------------------------------------------------------

    def ping(self) -> None:
        self._ask(requests.ping())

    def hello(self) -> shapes.Hello:
        return self._ask(requests.hello())

    def status(self) -> shapes.Status:
        return self._ask(requests.status())

    def inspect(self) -> shapes.Inspect:
        return self._ask(requests.inspect())

    def check_integration(self, name: str, *, at_most: float = 60.0) -> shapes.IntegrationStatus:
        """Runs a health check now, which may take so many seconds."""
        return self._ask(requests.check_integration(name, at_most))

    def check_probe(self, name: str, *, at_most: float = 60.0) -> shapes.ProbeStatus:
        """Runs a probe now, which may take so many seconds."""
        return self._ask(requests.check_probe(name, at_most))

    def reload(self) -> shapes.Reloaded:
        return self._ask(requests.reload())

    def watch(self, *, heartbeat_secs: float = 15.0) -> Watch:
        """What changes, as it changes. The session belongs to it from then on."""
        return Watch(self, heartbeat_secs)

    def sleep_prep(
        self,
        *,
        token: Optional[str] = None,
        deadline_secs: float = 60.0,
        lease_secs: float = 600.0,
        require_freeze: bool = False,
    ) -> shapes.Ready:
        """Makes the guest ready for a snapshot. Close all connections to it then, before it is paused."""
        asked = requests.sleep_prep(token, deadline_secs, lease_secs, require_freeze)
        return self._ask(asked)

    def wake(
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
        return self._ask(requests.wake(token, cause, clone, wall_clock, entropy, payload))

    # --- development guests -----------------------------------------------------------------------

    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[Union[str, int]] = None,
        tty: Optional[Mapping[str, int]] = None,
        stdin: bool = False,
        timeout_secs: Optional[float] = None,
    ) -> Command:
        """Runs a command. The session belongs to it until it has ended."""
        body = requests.exec_(argv, env, cwd, user, tty, stdin, timeout_secs, False)
        return Command(self, body)

    def run(
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
        with self.exec(
            argv, env=env, cwd=cwd, user=user, stdin=has_input, timeout_secs=timeout_secs
        ) as command:
            return command.run_to_end(input, max_output)

    def start_job(
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
        return self._ask(requests.Request(body, "job-started", shapes.JobStarted.read))

    def jobs(self) -> Sequence[shapes.Job]:
        return self._ask(requests.jobs()).jobs

    def job_signal(self, job: int, signal: str = "TERM") -> None:
        self._ask(requests.job_signal(job, signal))

    def attach(self, job: int, *, follow: bool = True) -> Command:
        """What a job has printed, and prints from now on."""
        return Command(self, {"type": "attach", "job": job, "follow": follow})

    def put(
        self,
        path: str,
        content: Union[bytes, BinaryIO],
        *,
        mode: Optional[int] = None,
        name: Optional[str] = None,
        archive: bool = False,
    ) -> shapes.PutDone:
        """Writes a file, whole or not at all; with `archive` the content is a tar stream of the entries
        of a folder that becomes `path`."""
        self._ask(requests.put(path, mode, name, archive))
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        while True:
            piece = source.read(PIECE)
            if not piece:
                break
            self._send(codec.encode_data(codec.CONTENT, piece))
        end = {"type": "put-end"}
        self._send(codec.encode(end), self.timeout)
        return self._answered(requests.Request(end, "put-done", shapes.PutDone.read, 60.0))

    def get(self, path: str, *, archive: bool = False) -> bytes:
        """Reads a file, or with `archive` a folder's entries as a tar stream, into memory."""
        into = io.BytesIO()
        self.get_to(path, into, archive=archive)
        return into.getvalue()

    def get_to(self, path: str, into: BinaryIO, *, archive: bool = False) -> shapes.GetStarted:
        """The same into a file. What was written is not the whole content if this raises."""
        started = self._ask(requests.get(path, archive))
        written = 0
        while True:
            frame = self._next()
            if isinstance(frame, codec.Data):
                into.write(frame.content)
                written += len(frame.content)
                continue
            done = shapes.GetDone.read(self._answer(frame, "get-done"))
            if written != done.bytes:
                raise ProtocolError(f"{path}: {written} of {done.bytes} bytes have come")
            return started

    def forward(self, port: int) -> Forward:
        """Joins the session to a TCP port on the guest's loopback."""
        self._ask(requests.forward(port))
        return Forward(self)

    # --- frames -----------------------------------------------------------------------------------

    def _ask(self, request: requests.Request[T]) -> T:
        self._id += 1
        self._send(codec.encode({**request.body, "id": self._id}), self.timeout)
        return self._answered(request)

    def _answered(self, request: requests.Request[T]) -> T:
        frame = self._next(self.timeout + request.extra)
        return request.read(self._answer(frame, request.answer))

    def _answer(self, frame: codec.Frame, *types: str) -> Mapping[str, Any]:
        """The frame as one of these answers to the last request."""
        return codec.answer(frame, *types, id=self._id)

    def _send(self, frame: bytes, at_most: Optional[float] = None) -> None:
        """Within so many seconds; without them it may take for ever. Reads meanwhile what comes, up to a
        bound: the other side may read no further before that."""
        until = None if at_most is None else time.monotonic() + at_most
        rest = memoryview(frame)
        while rest:
            wait = None if until is None else left(until)
            stream = self._open()
            reads = self._decoder.size < _MAX_UNREAD
            readable, writable = _ready(stream, reads=reads, writes=True, wait=wait)
            try:
                if readable:
                    self._feed()
                if writable:
                    rest = rest[stream.send(rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Unreachable(f"the connection was ended: {error}") from error

    def _next(self, at_most: Optional[float] = None) -> codec.Frame:
        """The next frame, at the latest after so many seconds; without them it may take for ever."""
        until = None if at_most is None else time.monotonic() + at_most
        while True:
            stream = self._open()
            frame = self._decoder.next()
            if frame is not None:
                return frame
            wait = None if until is None else left(until)
            if _ready(stream, reads=True, writes=False, wait=wait)[0]:
                self._feed()

    def _open(self) -> socket.socket:
        """The connection, which a closed session has no more."""
        if self._stream.fileno() < 0:
            raise Unreachable(CLOSED)
        return self._stream

    def _feed(self) -> None:
        try:
            piece = self._stream.recv(PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            raise Unreachable(f"the connection was ended: {error}") from error
        if not piece:
            whole = "" if self._decoder.size == 0 else " in the middle of a frame"
            raise Unreachable(f"the agent has ended the connection{whole}")
        self._decoder.feed(piece)


class Watch(_Closing):
    """An iterator over what changes; heartbeats are left out. `DeadlinePassed` after three missed ones:
    the guest, or the way to it, is gone."""

    def __init__(self, session: Session, heartbeat_secs: float) -> None:
        self._session = session
        self._silence = 3 * heartbeat_secs
        #: What the guest was like when the watch began.
        self.status: shapes.Status = session._ask(requests.watch(heartbeat_secs))

    def close(self) -> None:
        self._session.close()

    def __iter__(self) -> Iterator[shapes.Event]:
        return self

    def __next__(self) -> shapes.Event:
        while True:
            frame = self._session._next(self._silence)
            event = shapes.Event.read(self._session._answer(frame, "event"))
            if not event.heartbeat:
                return event


class Command(_Closing):
    """A command that runs: an iterator over what it prints, in the order in which it was read."""

    def __init__(self, session: Session, body: Mapping[str, Any]) -> None:
        self._session = session
        started = requests.Request(body, "exec-started", shapes.ExecStarted.read)
        #: Its process id, which is also its process group's.
        self.pid: int = session._ask(started).pid
        #: How it ended, once all that it printed was read.
        self.exited: Optional[shapes.ExecExited] = None

    def close(self) -> None:
        """Ends the connection if the command has not ended, and with it the command; a job goes on."""
        if self.exited is None:
            self._session.close()

    def __iter__(self) -> Iterator[Output]:
        return self

    def __next__(self) -> Output:
        if self.exited is not None:
            raise StopIteration
        frame = self._session._next()
        if isinstance(frame, codec.Data):
            return Output(frame.channel, frame.content)
        self.exited = shapes.ExecExited.read(self._session._answer(frame, "exec-exited"))
        raise StopIteration

    def wait(self) -> shapes.ExecExited:
        """Drops what it prints, and says how it ended."""
        for _ in self:
            pass
        assert self.exited is not None
        return self.exited

    def write(self, content: bytes) -> None:
        """Input, for a command with `stdin`."""
        view = memoryview(content)
        for at in range(0, len(view), PIECE):
            piece = bytes(view[at : at + PIECE])
            self._session._send(codec.encode_data(codec.STDIN, piece))

    def close_stdin(self) -> None:
        self._control({"type": "stdin-close"})

    def signal(self, name: str) -> None:
        """To its process group, a name without SIG; KILL to all that it started."""
        self._control({"type": "signal", "signal": name})

    def resize(self, cols: int, rows: int) -> None:
        self._control({"type": "resize", "cols": cols, "rows": rows})

    def _control(self, body: Mapping[str, Any]) -> None:
        self._session._send(codec.encode(body), self._session.timeout)

    def run_to_end(self, input: Optional[bytes], max_output: int) -> Completed:
        """Sends all of the input, and collects all of the output."""
        if input is not None:
            self.write(input)
            self.close_stdin()
        printed = {codec.STDOUT: bytearray(), codec.STDERR: bytearray()}
        for output in self:
            printed.setdefault(output.stream, bytearray()).extend(output.content)
            if sum(map(len, printed.values())) > max_output:
                raise ProtocolError(f"the command printed more than {max_output} bytes")
        assert self.exited is not None
        return Completed(
            bytes(printed[codec.STDOUT]), bytes(printed[codec.STDERR]), self.exited
        )


class Forward(_Closing):
    """A connection to a port on the guest's loopback."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._port_has_ended = False
        #: How many bytes went each way, once both sides have ended.
        self.done: Optional[shapes.ForwardDone] = None

    def close(self) -> None:
        if self.done is None:
            self._session.close()

    def send(self, content: bytes) -> None:
        view = memoryview(content)
        for at in range(0, len(view), PIECE):
            piece = bytes(view[at : at + PIECE])
            self._session._send(codec.encode_data(codec.STDIN, piece))

    def end(self) -> None:
        """Says that nothing more is sent."""
        self._session._send(codec.encode({"type": "forward-end"}), self._session.timeout)

    def recv(self) -> bytes:
        """What the port sends next; empty at its end."""
        while self.done is None:
            frame = self._session._next()
            if isinstance(frame, codec.Data):
                return frame.content
            body = self._session._answer(frame, "forward-end", "forward-done")
            if body["type"] == "forward-done":
                self.done = shapes.ForwardDone.read(body)
            elif not self._port_has_ended:
                self._port_has_ended = True
                return b""
        return b""
