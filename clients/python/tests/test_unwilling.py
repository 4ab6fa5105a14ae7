"""Both sessions against whoever is no agent, or none that can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any, Callable, List

from mvm_agent import AsyncSession, DeadlinePassed, ProtocolError, Session, Unreachable
from mvm_agent import _codec as codec


def pong(stream: socket.socket) -> None:
    """An agent that is asked once whether it is there."""
    stream.recv(100)
    stream.sendall(b"OK 1\n")
    stream.recv(100)
    stream.sendall(codec.encode({"type": "pong", "id": 1}))
    stream.recv(100)


def open_below(folder: Path) -> List[str]:
    """What this process has open in that folder, by its path."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:
            # That of the listing itself, or closed meanwhile.
            continue
    return [path for path in found if path.startswith(str(folder))]


class Unwilling(unittest.TestCase):
    """Others than agents, and nobody."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="mvm")
        self.addCleanup(folder.cleanup)
        self.path = f"{folder.name}/v.sock"

    def serve(self, handle: Callable[[socket.socket], Any]) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self.addCleanup(listener.close)

        def accept() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                with stream:
                    handle(stream)

        threading.Thread(target=accept, daemon=True).start()

    def test_no_socket_and_nobody_in_the_guest(self) -> None:
        with self.assertRaises(Unreachable):
            Session.connect(self.path)
        dialled: List[bytes] = []
        self.serve(lambda stream: dialled.append(stream.recv(100)))
        with self.assertRaises(Unreachable):
            Session.connect(self.path)
        self.assertEqual(dialled, [b"CONNECT 52\n"] * 3)

    def test_a_handshake_is_finished_whose_deadline_has_passed(self) -> None:
        ended = threading.Event()
        may_answer = threading.Event()

        def handle(stream: socket.socket) -> None:
            stream.recv(100)
            may_answer.wait()
            stream.sendall(b"OK 1073741824\n")
            if stream.recv(100) == b"":
                ended.set()

        self.serve(handle)
        with self.assertRaises(DeadlinePassed):
            Session.connect(self.path, connect_timeout=0.1)
        self.assertFalse(ended.is_set())
        may_answer.set()
        self.assertTrue(ended.wait(10))

    def test_silence_and_strangers_are_told_apart(self) -> None:
        def silent(stream: socket.socket) -> None:
            stream.recv(100)
            stream.sendall(b"OK 1\n")
            while stream.recv(100):
                pass

        self.serve(silent)
        began = time.monotonic()
        with Session.connect(self.path, timeout=0.2) as session:
            with self.assertRaises(DeadlinePassed):
                session.ping()
        self.assertLess(time.monotonic() - began, 5)

        async def story() -> None:
            async with await AsyncSession.connect(self.path, timeout=0.2) as session:
                with self.assertRaises(DeadlinePassed):
                    await session.ping()

        asyncio.run(story())

    def test_a_path_may_be_longer_than_an_address_holds(self) -> None:
        async def story(path: str) -> None:
            async with await AsyncSession.connect(path) as session:
                await session.ping()

        self.serve(pong)
        folder = Path(self.path).parent / ("f" * 100) / "deep"
        folder.mkdir(parents=True)
        # The second has a name that does not fit either.
        for path in (folder / "v.sock", folder / ("s" * 120)):
            with self.assertRaisesRegex(Unreachable, "No such file"):
                Session.connect(str(path))
            os.link(self.path, path)
            with Session.connect(str(path)) as session:
                session.ping()
            asyncio.run(story(str(path)))
        with self.assertRaisesRegex(Unreachable, "No such file"):
            Session.connect(f"/{'x' * 200}/v.sock")
        self.assertEqual(open_below(Path(self.path).parent), [])

    def test_a_descriptor_may_be_over_what_select_knows(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        self.serve(pong)
        with contextlib.ExitStack() as opened:
            for _ in range(1100):
                opened.enter_context(open(os.devnull))
            with Session.connect(self.path) as session:
                session.ping()

    def test_a_stranger_is_told(self) -> None:
        def ssh(stream: socket.socket) -> None:
            stream.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            stream.recv(100)

        self.serve(ssh)
        with self.assertRaises(ProtocolError):
            Session.connect(self.path)

    def test_a_guest_cannot_make_a_client_keep_more_than_a_frame(self) -> None:
        def large(stream: socket.socket) -> None:
            stream.recv(100)
            stream.sendall(b"OK 1\n")
            stream.recv(100)
            stream.sendall((1 << 30).to_bytes(4, "big"))

        self.serve(large)
        with Session.connect(self.path) as session, self.assertRaises(ProtocolError):
            session.ping()


if __name__ == "__main__":
    unittest.main()
