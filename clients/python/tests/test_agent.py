"""Both sessions against a real agent, on a Unix socket. `MVM_TEST_DEV_AGENT` names the dev build of the
agent; it leaves the machine as it is (`--no-system-effects`)."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import tarfile
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Awaitable, Callable, List, TypeVar

from mvm_agent import (
    AgentError,
    AsyncSession,
    ErrorCode,
    Health,
    Lifecycle,
    ProtocolError,
    Session,
    Unreachable,
    WorkerState,
)

T = TypeVar("T")


def program() -> str:
    agent = os.environ.get("MVM_TEST_DEV_AGENT")
    if not agent:
        raise RuntimeError("MVM_TEST_DEV_AGENT does not name the agent: run `cargo xtask test python`")
    return agent


class Agent:
    """One that runs, with an integration `web` and a probe `size`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mvm")
        folder = Path(self._folder.name)
        self.socket = str(folder / "agent.sock")
        self.flag = folder / "down"
        drop_ins = {
            "integrations.d/web.json": {
                "name": "web",
                "health_cmd": f"test ! -e {self.flag}",
                "health_interval_secs": 0.2,
            },
            "probes.d/size.json": {
                "name": "size",
                "command": "echo '[1, 2.5]'",
                "output": "json",
            },
        }
        for name, content in drop_ins.items():
            path = folder / name
            path.parent.mkdir()
            path.write_text(json.dumps(content))
        (folder / "agent.json").write_text("{}")
        arguments = [
            program(),
            "--no-system-effects",
            f"--config={folder / 'agent.json'}",
            f"--listen=unix:{self.socket}",
            f"--integrations-dir={folder / 'integrations.d'}",
            f"--probes-dir={folder / 'probes.d'}",
            f"--run-dir={folder / 'run'}",
        ]
        self._process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "listening on" in line:
                break
        # Nobody must wait for a full pipe.
        threading.Thread(target=self._process.stderr.read, daemon=True).start()

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._folder.cleanup()

    def session(self) -> Session:
        return Session.connect(self.socket)


class WithAgent(unittest.TestCase):
    agent: Agent

    @classmethod
    def setUpClass(cls) -> None:
        cls.agent = Agent()
        cls.addClassCleanup(cls.agent.end)


def echo_server() -> "tuple[int, socket.socket]":
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        stream, _ = listener.accept()
        with stream:
            while piece := stream.recv(65536):
                stream.sendall(piece.upper())

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1], listener


class Blocking(WithAgent):
    def test_what_every_agent_says(self) -> None:
        with self.agent.session() as session:
            session.ping()
            hello = session.hello()
            self.assertEqual((hello.protocol, hello.profile), (1, "dev"))
            self.assertIn("watch", hello.capabilities)
            status = session.status()
            self.assertEqual(status.lifecycle, Lifecycle.RUNNING)
            self.assertIn(status.worker.state, (WorkerState.IDLE, WorkerState.BUSY))
            assert status.now is not None
            self.assertLessEqual(status.worker.since, status.now)
            inspect = session.inspect()
            self.assertEqual([probe.name for probe in inspect.probes], ["size"])
            self.assertEqual(len(inspect.system.load), 3)
            self.assertEqual(session.check_integration("web").health, Health.HEALTHY)
            self.assertEqual(session.check_probe("size").value, [1, 2.5])
            reloaded = session.reload()
            self.assertEqual((reloaded.integrations, reloaded.errors), (1, ()))

    def test_a_refusal_is_told_by_its_code_and_the_session_goes_on(self) -> None:
        with self.agent.session() as session:
            with self.assertRaises(AgentError) as refused:
                session.check_probe("nothing")
            self.assertEqual(refused.exception.code, ErrorCode.NOT_FOUND)
            self.assertFalse(refused.exception.retryable)
            session.ping()

    def test_a_watch_tells_what_changes(self) -> None:
        with self.agent.session() as session, session.watch(heartbeat_secs=0.5) as watch:
            self.assertEqual(watch.status.lifecycle, Lifecycle.RUNNING)
            self.agent.flag.touch()
            self.addCleanup(self.agent.flag.unlink)
            for event in watch:
                web = event.integration
                if web is not None and web.health == Health.UNHEALTHY:
                    break

    def test_a_command_has_input_output_and_an_end(self) -> None:
        with self.agent.session() as session:
            # More than fits any buffer on the way, both ways at once.
            content = os.urandom(3 << 20)
            echoed = session.run(["cat"], input=content)
            self.assertTrue(echoed.ok)
            self.assertEqual(echoed.stdout, content)
            ended = session.run(["sh", "-c", "echo out; echo err >&2; exit 3"], env={"A": "b"})
            self.assertEqual((ended.stdout, ended.stderr), (b"out\n", b"err\n"))
            self.assertEqual((ended.ok, ended.exited.exit_code), (False, 3))
            with self.assertRaises(AgentError) as missing:
                session.run(["no-such-program"])
            self.assertEqual(missing.exception.code, ErrorCode.NOT_FOUND)
            with session.exec(["sh", "-c", "echo here; exec sleep 60"]) as command:
                self.assertEqual(next(command).content, b"here\n")
                command.signal("TERM")
                self.assertEqual(command.wait().signal, "TERM")
            with self.assertRaises(ProtocolError):
                session.run(["head", "-c", "100000", "/dev/zero"], max_output=1000)
            # The session went with the command.
            with self.assertRaisesRegex(Unreachable, "the session is closed"):
                session.ping()

    def test_a_closed_session_says_so(self) -> None:
        session = self.agent.session()
        command = session.exec(["cat"], stdin=True)
        session.close()
        calls: List[Callable[[], Any]] = [
            session.ping,
            session.watch,
            lambda: session.put("/nowhere", b"content"),
            lambda: session.get("/nowhere"),
            lambda: session.forward(1),
            lambda: next(command),
            lambda: command.write(b"input"),
            lambda: command.signal("TERM"),
        ]
        for call in calls:
            with self.assertRaisesRegex(Unreachable, "the session is closed"):
                call()
        session.close()

    def test_files_and_folders_go_both_ways(self) -> None:
        with tempfile.TemporaryDirectory() as folder, self.agent.session() as session:
            content = os.urandom(500_000)
            file = f"{folder}/file"
            self.assertEqual(session.put(file, content, mode=0o600).bytes, len(content))
            self.assertEqual(os.stat(file).st_mode & 0o777, 0o600)
            self.assertEqual(session.get(file), content)
            archive = io.BytesIO()
            with tarfile.open(fileobj=archive, mode="w") as tar:
                tar.add(file, "inside")
            archive.seek(0)
            session.put(f"{folder}/unpacked", archive, archive=True)
            self.assertEqual(Path(folder, "unpacked/inside").read_bytes(), content)
            back = io.BytesIO(session.get(f"{folder}/unpacked", archive=True))
            with tarfile.open(fileobj=back) as tar:
                self.assertIn("inside", [os.path.normpath(name) for name in tar.getnames()])

    def test_a_job_outlives_its_session(self) -> None:
        with self.agent.session() as session:
            job = session.start_job(["sh", "-c", "echo begun; exec sleep 60"]).job
        with self.agent.session() as session:
            self.assertIn(job, [one.job for one in session.jobs()])
            with session.attach(job) as output:
                self.assertEqual(next(output).content, b"begun\n")
                with self.agent.session() as other:
                    other.job_signal(job, "KILL")
                self.assertEqual(output.wait().signal, "KILL")

    def test_a_port_is_forwarded(self) -> None:
        port, listener = echo_server()
        with listener, self.agent.session() as session, session.forward(port) as forward:
            forward.send(b"x" * 200_000)
            forward.end()
            come = b""
            while piece := forward.recv():
                come += piece
            self.assertEqual(come, b"X" * 200_000)
            forward.recv()
            assert forward.done is not None
            self.assertEqual((forward.done.sent, forward.done.received), (200_000, 200_000))

    def test_a_guest_sleeps_and_wakes(self) -> None:
        agent = Agent()
        self.addCleanup(agent.end)
        with agent.session() as session:
            ready = session.sleep_prep(token="nightly")
            self.assertIn("freeze", [step.step for step in ready.steps])
        with agent.session() as session:
            with self.assertRaises(AgentError) as refused:
                session.wake(token="another")
            self.assertEqual(refused.exception.code, ErrorCode.WRONG_TOKEN)
            awake = session.wake(token="nightly", clone=True, payload={"name": "one"})
            self.assertTrue(awake.was_ready)
            self.assertEqual(awake.generation, 1)


class Asynchronous(WithAgent):
    def run_with_session(self, story: Callable[[AsyncSession], Awaitable[T]]) -> T:
        async def told() -> T:
            async with await AsyncSession.connect(self.agent.socket) as session:
                return await story(session)

        return asyncio.run(told())

    def test_what_every_agent_says(self) -> None:
        async def story(session: AsyncSession) -> None:
            await session.ping()
            self.assertEqual((await session.hello()).protocol, 1)
            self.assertEqual((await session.status()).lifecycle, Lifecycle.RUNNING)
            self.assertEqual((await session.inspect()).probes[0].name, "size")
            self.assertEqual((await session.check_integration("web")).health, Health.HEALTHY)
            self.assertEqual((await session.check_probe("size")).value, [1, 2.5])
            self.assertEqual((await session.reload()).errors, ())

        self.run_with_session(story)

    def test_a_watch_is_an_iterator(self) -> None:
        async def story(session: AsyncSession) -> None:
            async with await session.watch(heartbeat_secs=0.5) as watch:
                self.agent.flag.touch()
                self.addCleanup(self.agent.flag.unlink)
                async for event in watch:
                    web = event.integration
                    if web is not None and web.health == Health.UNHEALTHY:
                        break

        self.run_with_session(story)

    def test_commands_and_files(self) -> None:
        async def story(session: AsyncSession) -> None:
            content = os.urandom(3 << 20)
            echoed = await session.run(["cat"], input=content)
            self.assertEqual(echoed.stdout, content)
            async with await session.exec(["sh", "-c", "echo here; exec sleep 60"]) as command:
                self.assertEqual((await command.__anext__()).content, b"here\n")
                await command.signal("TERM")
                self.assertEqual((await command.wait()).signal, "TERM")
            with tempfile.TemporaryDirectory() as folder:
                await session.put(f"{folder}/file", content)
                self.assertEqual(await session.get(f"{folder}/file"), content)
            job = (await session.start_job(["sh", "-c", "exit 4"])).job
            async with await session.attach(job) as output:
                self.assertEqual((await output.wait()).exit_code, 4)
            self.assertIn(job, [one.job for one in await session.jobs()])

        self.run_with_session(story)

    def test_a_closed_session_says_so(self) -> None:
        async def story(session: AsyncSession) -> None:
            command = await session.exec(["cat"], stdin=True)
            waits = asyncio.ensure_future(command.wait())
            await asyncio.sleep(0)
            await session.close()
            calls: List[Callable[[], Awaitable[Any]]] = [
                lambda: waits,
                session.ping,
                session.watch,
                command.__anext__,
                lambda: command.write(b"input"),
            ]
            for call in calls:
                with self.assertRaisesRegex(Unreachable, "the session is closed"):
                    await call()
            await session.close()

        self.run_with_session(story)

    def test_a_port_is_forwarded(self) -> None:
        port, listener = echo_server()

        async def story(session: AsyncSession) -> None:
            async with await session.forward(port) as forward:
                await forward.send(b"hello")
                await forward.end()
                come = b""
                while piece := await forward.recv():
                    come += piece
                self.assertEqual(come, b"HELLO")

        with listener:
            self.run_with_session(story)

    def test_a_guest_sleeps_and_wakes(self) -> None:
        agent = Agent()
        self.addCleanup(agent.end)

        async def story() -> None:
            async with await AsyncSession.connect(agent.socket) as session:
                await session.sleep_prep()
            async with await AsyncSession.connect(agent.socket) as session:
                self.assertTrue((await session.wake()).was_ready)

        asyncio.run(story())


if __name__ == "__main__":
    unittest.main()
