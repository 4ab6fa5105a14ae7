"""The requests with one answer: what is sent, and how the answer is read. Sessions of either kind send
them."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Generic, Mapping, Optional, Sequence, TypeVar, Union

from . import _shapes as shapes

T = TypeVar("T")


@dataclass(frozen=True)
class Request(Generic[T]):
    body: Mapping[str, Any]
    #: The answer's `type`.
    answer: str
    read: Callable[[object], T]
    #: How much longer than a session's deadline its answer may take, in seconds.
    extra: float = 0.0


def _given(**fields: Any) -> Dict[str, Any]:
    """Without what is left to the agent: null is no value in requests."""
    return {key: value for key, value in fields.items() if value is not None}


def ping() -> Request[None]:
    return Request({"type": "ping"}, "pong", lambda _: None)


def hello() -> Request[shapes.Hello]:
    return Request({"type": "hello"}, "hello", shapes.Hello.read)


def status() -> Request[shapes.Status]:
    return Request({"type": "status"}, "status", shapes.Status.read)


def inspect() -> Request[shapes.Inspect]:
    return Request({"type": "inspect"}, "inspect", shapes.Inspect.read)


def check_integration(name: str, at_most: float) -> Request[shapes.IntegrationStatus]:
    def read(answer: object) -> shapes.IntegrationStatus:
        fresh = shapes.Checked.read(answer).integration
        return fresh if fresh is not None else shapes.IntegrationStatus.read(None)

    body = {"type": "check", "kind": "integration", "name": name}
    return Request(body, "checked", read, at_most)


def check_probe(name: str, at_most: float) -> Request[shapes.ProbeStatus]:
    def read(answer: object) -> shapes.ProbeStatus:
        fresh = shapes.Checked.read(answer).probe
        return fresh if fresh is not None else shapes.ProbeStatus.read(None)

    body = {"type": "check", "kind": "probe", "name": name}
    return Request(body, "checked", read, at_most)


def reload() -> Request[shapes.Reloaded]:
    return Request({"type": "reload"}, "reloaded", shapes.Reloaded.read)


def watch(heartbeat_secs: float) -> Request[shapes.Status]:
    body = {"type": "watch", "heartbeat_secs": heartbeat_secs}
    return Request(body, "status", shapes.Status.read)


def sleep_prep(
    token: Optional[str], deadline_secs: float, lease_secs: float, require_freeze: bool
) -> Request[shapes.Ready]:
    body = _given(
        type="sleep-prep",
        token=token,
        deadline_secs=deadline_secs,
        lease_secs=lease_secs,
        # Older agents do not know it.
        require_freeze=require_freeze or None,
    )
    return Request(body, "ready", shapes.Ready.read, deadline_secs)


def wake(
    token: Optional[str],
    cause: str,
    clone: bool,
    wall_clock: Optional[datetime],
    entropy: Optional[bytes],
    payload: Optional[Mapping[str, Any]],
) -> Request[shapes.Awake]:
    restored = cause == "restored"
    body = _given(
        type="wake",
        token=token,
        cause=cause,
        clone=clone,
        wall_clock=_rfc3339(wall_clock or datetime.now(timezone.utc)),
        entropy=_base64(entropy or os.urandom(64)) if restored else None,
        payload=payload,
    )
    # Personalize and restore commands may take their time.
    return Request(body, "awake", shapes.Awake.read, 60.0)


def _rfc3339(time: datetime) -> str:
    if time.tzinfo is None:
        raise ValueError("wall_clock: a time without a zone")
    return time.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def exec_(
    argv: Sequence[str],
    env: Optional[Mapping[str, str]],
    cwd: Optional[str],
    user: Optional[Union[str, int]],
    tty: Optional[Mapping[str, int]],
    stdin: bool,
    timeout_secs: Optional[float],
    detach: bool,
) -> Mapping[str, Any]:
    return _given(
        type="exec",
        argv=list(argv),
        env=dict(env) if env else None,
        cwd=cwd,
        user=None if user is None else str(user),
        tty=tty,
        stdin=stdin or None,
        timeout_secs=timeout_secs,
        detach=detach or None,
    )


def jobs() -> Request[shapes.Jobs]:
    return Request({"type": "jobs"}, "jobs", shapes.Jobs.read)


def job_signal(job: int, signal: str) -> Request[None]:
    body = {"type": "job-signal", "job": job, "signal": signal}
    return Request(body, "job-signaled", lambda _: None)


def put(path: str, mode: Optional[int], name: Optional[str], archive: bool) -> Request[shapes.PutReady]:
    body = _given(
        type="put", path=path, mode=mode, name=name, archive="tar" if archive else None
    )
    return Request(body, "put-ready", shapes.PutReady.read)


def get(path: str, archive: bool) -> Request[shapes.GetStarted]:
    body = _given(type="get", path=path, archive="tar" if archive else None)
    return Request(body, "get-started", shapes.GetStarted.read)


def forward(port: int) -> Request[None]:
    return Request({"type": "forward", "port": port}, "forward-started", lambda _: None)
