"""Frames and the handshake, without sockets: bytes in, bytes out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Union

from ._errors import AgentError, ProtocolError, Unreachable
from ._shapes import ErrorAnswer

#: The agent's vsock port.
PORT = 52
#: The most bytes of a frame's body.
MAX_BODY = 262_144
#: The most bytes of content in a data frame: the channel is one of the body's.
MAX_DATA = MAX_BODY - 1

STDIN, STDOUT, STDERR, CONTENT = range(4)

_RAW = 1 << 31
#: The number is the VMM's, and its size is left to it.
_MAX_LINE = 64


@dataclass(frozen=True)
class Data:
    """A data frame."""

    channel: int
    content: bytes


#: What a frame is: a JSON object, or data.
Frame = Union[Mapping[str, Any], Data]


def encode(body: Mapping[str, Any]) -> bytes:
    """A frame of JSON. `ValueError` if it is too large."""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    if len(text) > MAX_BODY:
        raise ValueError(f"a request of {len(text)} bytes; at most {MAX_BODY} fit a frame")
    return len(text).to_bytes(4, "big") + text


def encode_data(channel: int, content: bytes) -> bytes:
    """A data frame, of at most `MAX_DATA` bytes."""
    if len(content) > MAX_DATA:
        raise ValueError(f"{len(content)} bytes of content; at most {MAX_DATA} fit a frame")
    return (_RAW | len(content) + 1).to_bytes(4, "big") + bytes([channel]) + content


class Decoder:
    """Frames of a stream that comes in any pieces. Whoever feeds it bounds it."""

    def __init__(self) -> None:
        self._come = bytearray()

    def feed(self, piece: bytes) -> None:
        self._come += piece

    @property
    def size(self) -> int:
        """How many bytes have come of frames that were not taken yet."""
        return len(self._come)

    def next(self) -> Optional[Frame]:
        """The next whole frame, or `None` if more has to come."""
        if len(self._come) < 4:
            return None
        header = int.from_bytes(self._come[:4], "big")
        is_raw, length = bool(header & _RAW), header & ~_RAW
        if length > MAX_BODY:
            raise ProtocolError(f"a frame of {length} bytes; at most {MAX_BODY} are allowed")
        if len(self._come) < 4 + length:
            return None
        body = bytes(self._come[4 : 4 + length])
        del self._come[: 4 + length]
        return _data(body) if is_raw else _object(body)


def _data(body: bytes) -> Data:
    if not body:
        raise ProtocolError("a data frame without a channel")
    return Data(body[0], body[1:])


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a frame that is no UTF-8: {error}") from None
    try:
        value = json.loads(text, parse_constant=_no_json)
        if "\\u" in text:
            # Half of a surrogate pair is no text: whoever writes it to a log would fail there.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame that is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError("a frame that is no JSON object")
    return value


def _no_json(constant: str) -> None:
    """Python's reader takes `NaN` and infinities."""
    raise ValueError(f"{constant} is none")


def answer(frame: Frame, *types: str, id: Optional[int] = None) -> Mapping[str, Any]:
    """The frame as one of these answers, to the request with that number; an error is raised. An error
    without a number is one, too: that is how an agent refuses what it could not read."""
    if isinstance(frame, Data):
        raise ProtocolError(f"a data frame on channel {frame.channel} in place of an answer")
    got, answered = frame.get("type"), frame.get("id")
    if id is not None and answered != id and not (got == "error" and answered is None):
        raise ProtocolError(f"an answer with the id {answered!r:.100} to request {id}")
    if got == "error":
        raise AgentError(ErrorAnswer.read(frame))
    if got not in types:
        raise ProtocolError(f"an answer of type {got!r:.100} in place of {' or '.join(types)}")
    return frame


def connect_line(port: int) -> bytes:
    """The first line of hybrid vsock. Nothing may follow it before OK has come."""
    return b"CONNECT %d\n" % port


class Handshake:
    """Reads hybrid vsock's `OK <number>`."""

    def __init__(self) -> None:
        self._come = b""

    def feed(self, piece: bytes) -> Optional[bytes]:
        """What has come after the line, once it is there. An empty piece is the end of the stream."""
        self._come += piece
        if not self._come:
            raise Unreachable("nobody listens on that port in the guest, or it has not started yet")
        line, newline, rest = self._come.partition(b"\n")
        if not b"OK ".startswith(line[:3]) or len(line) > _MAX_LINE:
            raise ProtocolError(f"what answers is no hybrid vsock: {self._come[:_MAX_LINE]!r}")
        if not newline:
            if not piece:
                raise ProtocolError(f"the connection was ended in the middle of {self._come!r}")
            return None
        if not line[3:].isdigit():
            raise ProtocolError(f"what answers is no hybrid vsock: {line!r}")
        return rest
