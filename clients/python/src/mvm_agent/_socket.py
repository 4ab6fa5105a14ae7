"""Opens a connection to an agent, with a deadline."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Tuple, Union

from . import _codec as codec
from ._endpoint import HybridVsock, Vsock
from ._errors import DeadlinePassed, Unreachable

#: For how long a handshake is finished whose deadline has passed. A connection that is closed between
#: CONNECT and OK can break the vsock of guests with vhost-device-vsock 0.3.0 for good.
_FINISH = 15.0
#: The first CONNECT after a restore may be closed without OK.
_TRIES = 3
_BETWEEN_TRIES = 0.1
#: The longest path that fits into a socket address, in bytes.
_MAX_SUN_PATH = 107


def left(until: float) -> float:
    """The seconds until then, by the monotonic clock."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise DeadlinePassed("no answer within the deadline")
    return seconds


def dial(endpoint: Union[HybridVsock, Vsock], until: float) -> Tuple[socket.socket, bytes]:
    """A connection that carries frames, and what has come on it already."""
    if isinstance(endpoint, Vsock):
        return _dial_vsock(endpoint, until), b""
    for _ in range(_TRIES - 1):
        try:
            return _dial_hybrid(endpoint, until)
        except Unreachable:
            time.sleep(min(_BETWEEN_TRIES, left(until)))
    return _dial_hybrid(endpoint, until)


def _dial_vsock(endpoint: Vsock, until: float) -> socket.socket:
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        stream.settimeout(left(until))
        stream.connect((endpoint.cid, endpoint.port))
    except socket.timeout:
        stream.close()
        raise DeadlinePassed(f"{endpoint}: no connection within the deadline") from None
    except OSError as error:
        stream.close()
        raise Unreachable(f"{endpoint}: {error}") from error
    except BaseException:
        stream.close()
        raise
    return stream


def _dial_hybrid(endpoint: HybridVsock, until: float) -> Tuple[socket.socket, bytes]:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    is_under_way = False
    try:
        stream.settimeout(left(until))
        _connect(stream, endpoint.path)
        is_under_way = True
        stream.sendall(codec.connect_line(endpoint.port))
        handshake = codec.Handshake()
        while True:
            stream.settimeout(left(until))
            early = handshake.feed(stream.recv(256))
            if early is not None:
                return stream, early
    except (socket.timeout, DeadlinePassed):
        if is_under_way:
            finish(stream)
        else:
            stream.close()
        raise DeadlinePassed(f"{endpoint.path}: no OK within the deadline") from None
    except OSError as error:
        stream.close()
        raise Unreachable(f"{endpoint.path}: {error}") from error
    except KeyboardInterrupt:
        finish(stream)
        raise
    except BaseException:
        stream.close()
        raise


def _connect(stream: socket.socket, path: str) -> None:
    """Whatever the path's length. One that does not fit a socket address is reached by its folder's entry
    in /proc/self/fd, or, if the file's name is too long as well, by that of the socket itself."""
    if len(os.fsencode(path)) <= _MAX_SUN_PATH or "\0" in path:
        # With a NUL it is no file's path.
        stream.connect(path)
        return
    folder, name = os.path.split(path)
    opened = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        short = f"/proc/self/fd/{opened}/{name}"
        if len(os.fsencode(short)) > _MAX_SUN_PATH:
            itself = os.open(name, os.O_PATH, dir_fd=opened)
            os.close(opened)
            opened = itself
            short = f"/proc/self/fd/{opened}"
        stream.connect(short)
    finally:
        os.close(opened)


def finish(stream: socket.socket) -> None:
    """Waits in a thread for the handshake's line or its end, and closes then. The program does not end
    before that."""

    def read() -> None:
        until = time.monotonic() + _FINISH
        with stream:
            try:
                while True:
                    stream.settimeout(left(until))
                    piece = stream.recv(256)
                    if not piece or b"\n" in piece:
                        return
            except (OSError, DeadlinePassed):
                return

    threading.Thread(target=read, name="mvm-agent-handshake", daemon=False).start()
