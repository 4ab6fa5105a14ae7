"""Talks to mvm-guest-agent, the agent in a microVM: health, load, snapshots, and in development guests
commands, files, jobs and ports.

    from mvm_agent import Session

    with Session.connect("/run/vm/v.sock") as session:
        print(session.status().health)

`AsyncSession` is the same for asyncio.
"""

from ._aio import AsyncCommand, AsyncForward, AsyncSession, AsyncWatch
from ._endpoint import Endpoint, HybridVsock, Vsock
from ._errors import AgentError, DeadlinePassed, MvmError, ProtocolError, Unreachable
from ._shapes import (
    Awake,
    BusySignal,
    ErrorCode,
    Event,
    ExecExited,
    Health,
    Hello,
    Inspect,
    IntegrationStatus,
    Job,
    JobState,
    LastCheck,
    Lifecycle,
    Outcome,
    ProbeStatus,
    Ready,
    Reloaded,
    Status,
    Step,
    StepKind,
    Worker,
    WorkerState,
)
from ._stream import Completed, Output
from ._sync import Command, Forward, Session, Watch

__all__ = [
    "AgentError",
    "AsyncCommand",
    "AsyncForward",
    "AsyncSession",
    "AsyncWatch",
    "Awake",
    "BusySignal",
    "Command",
    "Completed",
    "DeadlinePassed",
    "Endpoint",
    "ErrorCode",
    "Event",
    "ExecExited",
    "Forward",
    "Health",
    "Hello",
    "HybridVsock",
    "Inspect",
    "IntegrationStatus",
    "Job",
    "JobState",
    "LastCheck",
    "Lifecycle",
    "MvmError",
    "Outcome",
    "Output",
    "ProbeStatus",
    "ProtocolError",
    "Ready",
    "Reloaded",
    "Session",
    "Status",
    "Step",
    "StepKind",
    "Unreachable",
    "Vsock",
    "Watch",
    "Worker",
    "WorkerState",
]
