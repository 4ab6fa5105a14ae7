"""The shapes of answers, as docs/schema has them. Written by `cargo xtask schema`: do not edit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Mapping, Optional, Tuple

from . import _read as read


@dataclass(frozen=True)
class Agent:
    """What the agent is."""

    #: Its version.
    version: str

    #: Which build it is.
    profile: str

    #: Its process id in the guest.
    pid: int

    #: Its resident memory, from `/proc/self/smaps_rollup`.
    rss_bytes: int

    #: When it started.
    started_at: datetime

    #: The drop-in files that were rejected.
    drop_in_errors: Tuple[DropInError, ...]

    #: How many rejected files found no room in the frame.
    drop_in_errors_omitted: int = 0

    @staticmethod
    def read(value: object) -> Agent:
        shape: Mapping[str, Any] = read.shape(value, "Agent")
        return Agent(
            version=read.required(shape, "version", read.text),
            profile=read.required(shape, "profile", read.text),
            pid=read.required(shape, "pid", read.integer),
            rss_bytes=read.required(shape, "rss_bytes", read.integer),
            started_at=read.required(shape, "started_at", read.timestamp),
            drop_in_errors=read.required(shape, "drop_in_errors", read.items(DropInError.read)),
            drop_in_errors_omitted=read.default(shape, "drop_in_errors_omitted", read.integer, 0),
        )


class Archive:
    """How a folder becomes a stream."""

    #: A POSIX tar stream (pax and GNU long names), entries relative to the folder.
    TAR: Final = "tar"


@dataclass(frozen=True)
class Awake:
    """Answers `wake`: the guest runs."""

    #: Whether the guest was ready when the wake came.
    was_ready: bool

    #: Whether the guest had woken by itself since its lease ran out.
    lease_expired: bool

    #: How many restores this guest has seen.
    generation: int

    #: What was done, in order.
    steps: Tuple[Step, ...]

    #: How many of them found no room in the frame.
    steps_omitted: int = 0

    @staticmethod
    def read(value: object) -> Awake:
        shape: Mapping[str, Any] = read.shape(value, "Awake")
        return Awake(
            was_ready=read.required(shape, "was_ready", read.boolean),
            lease_expired=read.required(shape, "lease_expired", read.boolean),
            generation=read.required(shape, "generation", read.integer),
            steps=read.required(shape, "steps", read.items(Step.read)),
            steps_omitted=read.default(shape, "steps_omitted", read.integer, 0),
        )


@dataclass(frozen=True)
class Boot:
    """When what was up, in seconds since the guest's boot (`CLOCK_BOOTTIME`)."""

    #: When the agent began its work.
    agent_started_secs: float

    #: When the drop-ins were loaded for the first time.
    drop_ins_loaded_secs: Optional[float] = None

    #: When the kernel made the agent's process, by `/proc/self/stat`: to the hundredth of a second. Left out if it cannot be read.
    process_started_secs: Optional[float] = None

    #: When the guest was ready: its drop-ins loaded, and for the first time every integration that has a check healthy.
    ready_secs: Optional[float] = None

    @staticmethod
    def read(value: object) -> Boot:
        shape: Mapping[str, Any] = read.shape(value, "Boot")
        return Boot(
            agent_started_secs=read.required(shape, "agent_started_secs", read.number),
            drop_ins_loaded_secs=read.optional(shape, "drop_ins_loaded_secs", read.number),
            process_started_secs=read.optional(shape, "process_started_secs", read.number),
            ready_secs=read.optional(shape, "ready_secs", read.number),
        )


class BusySignal:
    """What can make a guest busy."""

    #: What counts of the 1-minute load average is at or over the threshold.
    LOADAVG: Final = "loadavg"

    #: The share of CPU time used since the last sample is at or over the threshold.
    CPU: Final = "cpu"

    #: The share of time in which something waited for a CPU is at or over the threshold.
    PRESSURE: Final = "pressure"

    #: An exec, put or get is open.
    SESSION: Final = "session"

    #: A file in `busy.d` says so.
    INHIBIT: Final = "inhibit"


@dataclass(frozen=True)
class Checked:
    """The fresh entry of what was checked, in the shape that `status` or `inspect` gives it."""

    #: The integration, if one was checked.
    integration: Optional[IntegrationStatus] = None

    #: The probe, if one was checked.
    probe: Optional[ProbeStatus] = None

    @staticmethod
    def read(value: object) -> Checked:
        shape: Mapping[str, Any] = read.shape(value, "Checked")
        return Checked(
            integration=read.optional(shape, "integration", IntegrationStatus.read),
            probe=read.optional(shape, "probe", ProbeStatus.read),
        )


@dataclass(frozen=True)
class DropInError:
    """A rejected drop-in file."""

    #: Its path.
    file: str

    #: Why, with line and field where they are known.
    message: str

    @staticmethod
    def read(value: object) -> DropInError:
        shape: Mapping[str, Any] = read.shape(value, "DropInError")
        return DropInError(
            file=read.required(shape, "file", read.text),
            message=read.required(shape, "message", read.text),
        )


@dataclass(frozen=True)
class DropIns:
    """What the drop-in folders hold."""

    #: How many integrations are loaded.
    integrations: int

    #: How many probes are loaded.
    probes: int

    #: The files that were rejected.
    errors: Tuple[DropInError, ...]

    #: How many rejected files found no room in the frame.
    errors_omitted: int = 0

    @staticmethod
    def read(value: object) -> DropIns:
        shape: Mapping[str, Any] = read.shape(value, "DropIns")
        return DropIns(
            integrations=read.required(shape, "integrations", read.integer),
            probes=read.required(shape, "probes", read.integer),
            errors=read.required(shape, "errors", read.items(DropInError.read)),
            errors_omitted=read.default(shape, "errors_omitted", read.integer, 0),
        )


@dataclass(frozen=True)
class ErrorAnswer:
    """Why a request was refused or failed."""

    #: For programs: decisions depend on this alone.
    code: str

    #: For people: what was wrong, with the field's or thing's name.
    message: str

    #: Whether the same request may succeed later, unchanged.
    retryable: bool

    #: What was done, where work was done.
    steps: Optional[Tuple[Step, ...]] = None

    #: How many of them found no room in the frame.
    steps_omitted: int = 0

    @staticmethod
    def read(value: object) -> ErrorAnswer:
        shape: Mapping[str, Any] = read.shape(value, "ErrorAnswer")
        return ErrorAnswer(
            code=read.required(shape, "code", read.text),
            message=read.required(shape, "message", read.text),
            retryable=read.required(shape, "retryable", read.boolean),
            steps=read.optional(shape, "steps", read.items(Step.read)),
            steps_omitted=read.default(shape, "steps_omitted", read.integer, 0),
        )


class ErrorCode:
    """The error codes of the protocol."""

    #: A header over the cap; the connection is closed.
    FRAME_TOO_LARGE: Final = "frame-too-large"

    #: A body that is not the JSON object that its type asks for.
    BAD_REQUEST: Final = "bad-request"

    #: A type that this agent does not know.
    UNKNOWN_REQUEST: Final = "unknown-request"

    #: This build, or its configuration, does not serve the request.
    NOT_ALLOWED: Final = "not-allowed"

    #: Nothing has that name.
    NOT_FOUND: Final = "not-found"

    #: Not now: something else is under way.
    BUSY: Final = "busy"

    #: The request's deadline passed.
    TIMED_OUT: Final = "timed-out"

    #: The guest could not be made ready for a snapshot.
    SLEEP_PREP_FAILED: Final = "sleep-prep-failed"

    #: Another host's token holds the guest.
    WRONG_TOKEN: Final = "wrong-token"

    #: The work was begun and failed.
    FAILED: Final = "failed"

    #: All connections are taken.
    TOO_MANY_CONNECTIONS: Final = "too-many-connections"


@dataclass(frozen=True)
class Event:
    """A change, in one of its fields."""

    #: When it came about.
    at: datetime

    #: What was found.
    drop_ins: Optional[DropIns] = None

    #: Always true.
    heartbeat: bool = False

    #: The integration as it is now.
    integration: Optional[IntegrationStatus] = None

    #: The lifecycle as it is now.
    lifecycle: Optional[str] = None

    #: What it knows of it.
    restored: Optional[Restored] = None

    #: The worker as it is now.
    worker: Optional[Worker] = None

    @staticmethod
    def read(value: object) -> Event:
        shape: Mapping[str, Any] = read.shape(value, "Event")
        return Event(
            at=read.required(shape, "at", read.timestamp),
            drop_ins=read.optional(shape, "drop_ins", DropIns.read),
            heartbeat=read.default(shape, "heartbeat", read.boolean, False),
            integration=read.optional(shape, "integration", IntegrationStatus.read),
            lifecycle=read.optional(shape, "lifecycle", read.text),
            restored=read.optional(shape, "restored", Restored.read),
            worker=read.optional(shape, "worker", Worker.read),
        )


@dataclass(frozen=True)
class ExecExited:
    """A command has ended."""

    #: What it exited with; null if a signal ended it.
    exit_code: Optional[int]

    #: The signal that ended it, without `SIG`; null if it exited.
    signal: Optional[str]

    #: Whether its time was up and the agent ended it.
    timed_out: bool

    #: Whether output of it is missing.
    truncated: bool

    @staticmethod
    def read(value: object) -> ExecExited:
        shape: Mapping[str, Any] = read.shape(value, "ExecExited")
        return ExecExited(
            exit_code=read.optional(shape, "exit_code", read.integer),
            signal=read.optional(shape, "signal", read.text),
            timed_out=read.required(shape, "timed_out", read.boolean),
            truncated=read.required(shape, "truncated", read.boolean),
        )


@dataclass(frozen=True)
class ExecStarted:
    """A command runs."""

    #: Its process id in the guest, which is its process group's as well.
    pid: int

    @staticmethod
    def read(value: object) -> ExecStarted:
        shape: Mapping[str, Any] = read.shape(value, "ExecStarted")
        return ExecStarted(
            pid=read.required(shape, "pid", read.integer),
        )


@dataclass(frozen=True)
class ForwardDone:
    """Both sides have ended, or the port's side broke off."""

    #: How many bytes went to the port.
    sent: int

    #: How many came from it.
    received: int

    @staticmethod
    def read(value: object) -> ForwardDone:
        shape: Mapping[str, Any] = read.shape(value, "ForwardDone")
        return ForwardDone(
            sent=read.required(shape, "sent", read.integer),
            received=read.required(shape, "received", read.integer),
        )


@dataclass(frozen=True)
class ForwardStarted:
    """The port is connected. Data frames go both ways, channel 0 to it and channel 1 from it; either side says `forward-end` when it has nothing more to send."""

    #: The address that took the connection.
    address: str

    @staticmethod
    def read(value: object) -> ForwardStarted:
        shape: Mapping[str, Any] = read.shape(value, "ForwardStarted")
        return ForwardStarted(
            address=read.required(shape, "address", read.text),
        )


@dataclass(frozen=True)
class GetDone:
    """That was all of it."""

    #: How many bytes were sent on channel 3.
    bytes: int

    @staticmethod
    def read(value: object) -> GetDone:
        shape: Mapping[str, Any] = read.shape(value, "GetDone")
        return GetDone(
            bytes=read.required(shape, "bytes", read.integer),
        )


@dataclass(frozen=True)
class GetStarted:
    """The content follows: data frames on channel 3, then `get-done`."""

    #: The file's size now; null for an archive, whose size shows at its end, and where a file's size says nothing, as in `/sys`. No fewer bytes follow.
    bytes: Optional[int]

    #: The file's or folder's permission bits.
    mode: int

    #: Whether an archive of a folder follows, and not a file.
    archive: Optional[str] = None

    @staticmethod
    def read(value: object) -> GetStarted:
        shape: Mapping[str, Any] = read.shape(value, "GetStarted")
        return GetStarted(
            bytes=read.optional(shape, "bytes", read.integer),
            mode=read.required(shape, "mode", read.integer),
            archive=read.optional(shape, "archive", read.text),
        )


class Health:
    """A verdict on a service, or on the guest."""

    #: No verdict yet, since the start or the last wake, or failing within the grace period.
    STARTING: Final = "starting"

    #: The check succeeds.
    HEALTHY: Final = "healthy"

    #: The check fails.
    UNHEALTHY: Final = "unhealthy"

    #: There is no health command. Never said of a guest.
    UNCHECKED: Final = "unchecked"


@dataclass(frozen=True)
class Hello:
    """Who serves the connection."""

    #: The protocol's version: 1.
    protocol: int

    #: The agent's version.
    agent_version: str

    #: Which build it is.
    profile: str

    #: The request types that this build serves.
    capabilities: Tuple[str, ...]

    #: The kernel's random id of this boot (`/proc/sys/kernel/random/boot_id`).
    boot_id: str

    #: How many restores this guest has seen.
    generation: int

    @staticmethod
    def read(value: object) -> Hello:
        shape: Mapping[str, Any] = read.shape(value, "Hello")
        return Hello(
            protocol=read.required(shape, "protocol", read.integer),
            agent_version=read.required(shape, "agent_version", read.text),
            profile=read.required(shape, "profile", read.text),
            capabilities=read.required(shape, "capabilities", read.items(read.text)),
            boot_id=read.required(shape, "boot_id", read.text),
            generation=read.required(shape, "generation", read.integer),
        )


@dataclass(frozen=True)
class Inspect:
    """The answer to `inspect`."""

    #: Where the guest is between running and frozen.
    lifecycle: str

    #: The verdict on the guest.
    health: str

    #: Seconds since the guest's boot, time asleep included (`CLOCK_BOOTTIME`).
    uptime_secs: float

    #: Idle or busy.
    worker: Worker

    #: The services, in load order.
    integrations: Tuple[IntegrationStatus, ...]

    #: The probes, in load order.
    probes: Tuple[ProbeStatus, ...]

    #: The guest.
    system: System

    #: The agent.
    agent: Agent

    #: Its history of snapshots.
    snapshot: Snapshot

    #: When what was up in its boot; null from an agent that does not tell.
    boot: Optional[Boot] = None

    #: How many integrations found no room in the frame. Those that are not healthy go first.
    integrations_omitted: int = 0

    #: The guest's wall clock when it answered; null from an agent that does not tell. The times of this answer are to be compared with it, and not with the clock of whoever reads them.
    now: Optional[datetime] = None

    #: How many probes found no room in the frame.
    probes_omitted: int = 0

    @staticmethod
    def read(value: object) -> Inspect:
        shape: Mapping[str, Any] = read.shape(value, "Inspect")
        return Inspect(
            lifecycle=read.required(shape, "lifecycle", read.text),
            health=read.required(shape, "health", read.text),
            uptime_secs=read.required(shape, "uptime_secs", read.number),
            worker=read.required(shape, "worker", Worker.read),
            integrations=read.required(shape, "integrations", read.items(IntegrationStatus.read)),
            probes=read.required(shape, "probes", read.items(ProbeStatus.read)),
            system=read.required(shape, "system", System.read),
            agent=read.required(shape, "agent", Agent.read),
            snapshot=read.required(shape, "snapshot", Snapshot.read),
            boot=read.optional(shape, "boot", Boot.read),
            integrations_omitted=read.default(shape, "integrations_omitted", read.integer, 0),
            now=read.optional(shape, "now", read.timestamp),
            probes_omitted=read.default(shape, "probes_omitted", read.integer, 0),
        )


@dataclass(frozen=True)
class IntegrationStatus:
    """A service's entry."""

    #: Its name.
    name: str

    #: The verdict.
    health: str

    #: Since when.
    since: datetime

    #: How many checks have failed in a row.
    consecutive_failures: int

    #: How many checks have ended.
    checks: int

    #: How many of them have failed.
    failures: int

    #: The last check; null before the first one since the start, or since a wake.
    last_check: Optional[LastCheck]

    #: When it was healthy for the first time, in seconds since the guest's boot. Left out if it was not before the guest's first sleep or restore.
    first_healthy_secs: Optional[float] = None

    @staticmethod
    def read(value: object) -> IntegrationStatus:
        shape: Mapping[str, Any] = read.shape(value, "IntegrationStatus")
        return IntegrationStatus(
            name=read.required(shape, "name", read.text),
            health=read.required(shape, "health", read.text),
            since=read.required(shape, "since", read.timestamp),
            consecutive_failures=read.required(shape, "consecutive_failures", read.integer),
            checks=read.required(shape, "checks", read.integer),
            failures=read.required(shape, "failures", read.integer),
            last_check=read.optional(shape, "last_check", LastCheck.read),
            first_healthy_secs=read.optional(shape, "first_healthy_secs", read.number),
        )


@dataclass(frozen=True)
class Job:
    """One job."""

    #: Its number.
    job: int

    #: What it runs. Shortened if all jobs would not fit a frame.
    argv: Tuple[str, ...]

    #: Its process id in the guest.
    pid: int

    #: Whether it runs.
    state: str

    #: When it was started.
    started_at: datetime

    #: When it ended; null while it has not.
    ended_at: Optional[datetime]

    #: What it exited with; null if it has not, or a signal ended it.
    exit_code: Optional[int]

    #: The signal that ended it, without `SIG`; null if none did.
    signal: Optional[str]

    #: Whether its time was up and the agent ended it.
    timed_out: bool

    #: How much it has printed in bytes. The last `KEPT_OUTPUT` of them are kept.
    output_bytes: int

    @staticmethod
    def read(value: object) -> Job:
        shape: Mapping[str, Any] = read.shape(value, "Job")
        return Job(
            job=read.required(shape, "job", read.integer),
            argv=read.required(shape, "argv", read.items(read.text)),
            pid=read.required(shape, "pid", read.integer),
            state=read.required(shape, "state", read.text),
            started_at=read.required(shape, "started_at", read.timestamp),
            ended_at=read.optional(shape, "ended_at", read.timestamp),
            exit_code=read.optional(shape, "exit_code", read.integer),
            signal=read.optional(shape, "signal", read.text),
            timed_out=read.required(shape, "timed_out", read.boolean),
            output_bytes=read.required(shape, "output_bytes", read.integer),
        )


@dataclass(frozen=True)
class JobSignaled:
    """Answers `job-signal`: it was sent."""

    #: Which job.
    job: int

    @staticmethod
    def read(value: object) -> JobSignaled:
        shape: Mapping[str, Any] = read.shape(value, "JobSignaled")
        return JobSignaled(
            job=read.required(shape, "job", read.integer),
        )


@dataclass(frozen=True)
class JobStarted:
    """A job runs."""

    #: Its number, from 1, not used again while this agent runs.
    job: int

    #: Its process id in the guest, which is its process group's as well.
    pid: int

    @staticmethod
    def read(value: object) -> JobStarted:
        shape: Mapping[str, Any] = read.shape(value, "JobStarted")
        return JobStarted(
            job=read.required(shape, "job", read.integer),
            pid=read.required(shape, "pid", read.integer),
        )


class JobState:
    """Whether a job runs."""

    #: It does.
    RUNNING: Final = "running"

    #: It is held, since the guest sleeps.
    HELD: Final = "held"

    #: It has ended.
    ENDED: Final = "ended"


@dataclass(frozen=True)
class Jobs:
    """Answers `jobs`."""

    #: The jobs that are remembered, in the order in which they were started.
    jobs: Tuple[Job, ...]

    @staticmethod
    def read(value: object) -> Jobs:
        shape: Mapping[str, Any] = read.shape(value, "Jobs")
        return Jobs(
            jobs=read.required(shape, "jobs", read.items(Job.read)),
        )


@dataclass(frozen=True)
class LastCheck:
    """How a check ended."""

    #: When it started.
    at: datetime

    #: How long it took.
    duration_ms: int

    #: Its exit code; null if it did not exit.
    exit_code: Optional[int]

    #: The signal that ended it, without `SIG`; null if none did.
    signal: Optional[str]

    #: Whether it was killed since its time was up.
    timed_out: bool

    #: The end of what it printed, or why it could not be started.
    output: str

    #: Whether it printed more than is kept.
    truncated: bool

    @staticmethod
    def read(value: object) -> LastCheck:
        shape: Mapping[str, Any] = read.shape(value, "LastCheck")
        return LastCheck(
            at=read.required(shape, "at", read.timestamp),
            duration_ms=read.required(shape, "duration_ms", read.integer),
            exit_code=read.optional(shape, "exit_code", read.integer),
            signal=read.optional(shape, "signal", read.text),
            timed_out=read.required(shape, "timed_out", read.boolean),
            output=read.required(shape, "output", read.text),
            truncated=read.required(shape, "truncated", read.boolean),
        )


class Lifecycle:
    """Where the guest is between running and frozen."""

    #: The normal state.
    RUNNING: Final = "running"

    #: A sleep-prep is under way.
    PREPARING: Final = "preparing"

    #: About to be frozen.
    READY: Final = "ready"

    #: A wake is under way.
    WAKING: Final = "waking"


class Outcome:
    """How a step ended."""

    #: It did what it is for.
    OK: Final = "ok"

    #: It did not.
    FAILED: Final = "failed"

    #: Its time was up.
    TIMED_OUT: Final = "timed-out"

    #: It was not tried, and `detail` says why.
    SKIPPED: Final = "skipped"


@dataclass(frozen=True)
class ProbeStatus:
    """A probe's entry."""

    #: Its name.
    name: str

    #: Whether its last run succeeded; false before the first.
    ok: bool

    #: What its last run printed, trimmed: a JSON value for `output` `json`, else a string. Null if that run failed or there was none.
    value: Any

    #: The last run; null before the first one.
    last_check: Optional[LastCheck]

    #: Whether that is from before the guest was frozen: it has woken, and the probe has not run since.
    stale: bool = False

    @staticmethod
    def read(value: object) -> ProbeStatus:
        shape: Mapping[str, Any] = read.shape(value, "ProbeStatus")
        return ProbeStatus(
            name=read.required(shape, "name", read.text),
            ok=read.required(shape, "ok", read.boolean),
            value=read.default(shape, "value", read.anything, None),
            last_check=read.optional(shape, "last_check", LastCheck.read),
            stale=read.default(shape, "stale", read.boolean, False),
        )


class Profile:
    """Which build of the agent it is."""

    #: Has no code for remote commands.
    PROD: Final = "prod"

    #: Serves remote commands, files, jobs and ports as well.
    DEV: Final = "dev"


@dataclass(frozen=True)
class PutDone:
    """It is there, whole."""

    #: How many bytes came on channel 3.
    bytes: int

    @staticmethod
    def read(value: object) -> PutDone:
        shape: Mapping[str, Any] = read.shape(value, "PutDone")
        return PutDone(
            bytes=read.required(shape, "bytes", read.integer),
        )


@dataclass(frozen=True)
class PutReady:
    """The content is waited for: data frames on channel 3, then `put-end`."""

    #: Where it goes.
    path: str

    @staticmethod
    def read(value: object) -> PutReady:
        shape: Mapping[str, Any] = read.shape(value, "PutReady")
        return PutReady(
            path=read.required(shape, "path", read.text),
        )


@dataclass(frozen=True)
class Ready:
    """Answers `sleep-prep`: the guest may be frozen now."""

    #: The sleep's token: the host's, or the one that the agent made up.
    token: str

    #: What was done, in order.
    steps: Tuple[Step, ...]

    #: How many of them found no room in the frame.
    steps_omitted: int = 0

    @staticmethod
    def read(value: object) -> Ready:
        shape: Mapping[str, Any] = read.shape(value, "Ready")
        return Ready(
            token=read.required(shape, "token", read.text),
            steps=read.required(shape, "steps", read.items(Step.read)),
            steps_omitted=read.default(shape, "steps_omitted", read.integer, 0),
        )


@dataclass(frozen=True)
class Reloaded:
    """What a reload found."""

    #: How many integrations are loaded.
    integrations: int

    #: How many probes are loaded.
    probes: int

    #: The files that were rejected.
    errors: Tuple[DropInError, ...]

    #: How many rejected files found no room in the frame.
    errors_omitted: int = 0

    @staticmethod
    def read(value: object) -> Reloaded:
        shape: Mapping[str, Any] = read.shape(value, "Reloaded")
        return Reloaded(
            integrations=read.required(shape, "integrations", read.integer),
            probes=read.required(shape, "probes", read.integer),
            errors=read.required(shape, "errors", read.items(DropInError.read)),
            errors_omitted=read.default(shape, "errors_omitted", read.integer, 0),
        )


class RestoreSign:
    """By what a restore was noticed that no host announced."""

    #: The kernel said that the VM's generation id (VMGENID) is another one.
    VMGENID: Final = "vmgenid"

    #: The generation counter of the vmclock device is another one.
    VMCLOCK: Final = "vmclock"

    #: The guest's vsock CID is another one.
    CID: Final = "cid"


@dataclass(frozen=True)
class Restored:
    """A restore of the guest."""

    #: Whether a host has announced it. False: who announces one gets the answer to `wake`, and no event tells of it.
    announced: bool

    #: By what the agent noticed it.
    by: str

    @staticmethod
    def read(value: object) -> Restored:
        shape: Mapping[str, Any] = read.shape(value, "Restored")
        return Restored(
            announced=read.required(shape, "announced", read.boolean),
            by=read.required(shape, "by", read.text),
        )


@dataclass(frozen=True)
class Snapshot:
    """The guest's history of snapshots."""

    #: How many restores this guest has seen.
    generation: int

    #: When it was last made ready; null if never.
    last_sleep: Optional[datetime]

    #: When it last woke; null if never.
    last_wake: Optional[datetime]

    #: How many restores the agent has noticed that no host announced by a `wake`. Not there if there were none.
    unannounced: int = 0

    @staticmethod
    def read(value: object) -> Snapshot:
        shape: Mapping[str, Any] = read.shape(value, "Snapshot")
        return Snapshot(
            generation=read.required(shape, "generation", read.integer),
            last_sleep=read.optional(shape, "last_sleep", read.timestamp),
            last_wake=read.optional(shape, "last_wake", read.timestamp),
            unannounced=read.default(shape, "unannounced", read.integer, 0),
        )


@dataclass(frozen=True)
class Status:
    """The answer to `status`."""

    #: Where the guest is between running and frozen.
    lifecycle: str

    #: The verdict on the guest.
    health: str

    #: Seconds since the guest's boot, time asleep included (`CLOCK_BOOTTIME`).
    uptime_secs: float

    #: Idle or busy.
    worker: Worker

    #: The services, in load order.
    integrations: Tuple[IntegrationStatus, ...]

    #: How many integrations found no room in the frame. Those that are not healthy go first.
    integrations_omitted: int = 0

    #: The guest's wall clock when it answered; null from an agent that does not tell. The times of this answer are to be compared with it, and not with the clock of whoever reads them.
    now: Optional[datetime] = None

    @staticmethod
    def read(value: object) -> Status:
        shape: Mapping[str, Any] = read.shape(value, "Status")
        return Status(
            lifecycle=read.required(shape, "lifecycle", read.text),
            health=read.required(shape, "health", read.text),
            uptime_secs=read.required(shape, "uptime_secs", read.number),
            worker=read.required(shape, "worker", Worker.read),
            integrations=read.required(shape, "integrations", read.items(IntegrationStatus.read)),
            integrations_omitted=read.default(shape, "integrations_omitted", read.integer, 0),
            now=read.optional(shape, "now", read.timestamp),
        )


@dataclass(frozen=True)
class Step:
    """One thing that `sleep-prep` or `wake` did."""

    #: What it was.
    step: str

    #: The integration whose command it ran, if it ran one.
    integration: Optional[str]

    #: How it ended.
    outcome: str

    #: How long it took.
    duration_ms: int

    #: What a command printed and how it ended, why a step was skipped, or which filesystem.
    detail: Optional[str]

    @staticmethod
    def read(value: object) -> Step:
        shape: Mapping[str, Any] = read.shape(value, "Step")
        return Step(
            step=read.required(shape, "step", read.text),
            integration=read.optional(shape, "integration", read.text),
            outcome=read.required(shape, "outcome", read.text),
            duration_ms=read.required(shape, "duration_ms", read.integer),
            detail=read.optional(shape, "detail", read.text),
        )


class StepKind:
    """What a step of sleeping or waking does."""

    #: Hold new checks, and end those that run.
    DRAIN: Final = "drain"

    #: Run an integration's checkpoint command.
    CHECKPOINT: Final = "checkpoint"

    #: Write a filesystem's dirty pages.
    SYNC: Final = "sync"

    #: Freeze the guest's work, so that nothing of it runs between the snapshot and the wake.
    FREEZE: Final = "freeze"

    #: Drop the page cache, so that the snapshot is small.
    DROP_CACHES: Final = "drop-caches"

    #: Give the kernel's random generator a new seed.
    RESEED: Final = "reseed"

    #: Set the wall clock.
    CLOCK: Final = "clock"

    #: Give a clone an identity of its own.
    IDENTITY: Final = "identity"

    #: Put the wake's payload where programs find it.
    PAYLOAD: Final = "payload"

    #: Run an integration's personalize command, while the guest's work is frozen still.
    PERSONALIZE: Final = "personalize"

    #: Let the guest's work run again.
    THAW: Final = "thaw"

    #: Run an integration's restore command.
    RESTORE: Final = "restore"

    #: Let checks run again.
    RESUME: Final = "resume"


@dataclass(frozen=True)
class System:
    """What the guest is."""

    #: Its host name.
    hostname: str

    #: Its kernel's release.
    kernel: str

    #: CPUs that are online.
    cpus: int

    #: `MemTotal` of `/proc/meminfo`.
    memory_total_bytes: int

    #: `MemAvailable` of `/proc/meminfo`.
    memory_available_bytes: int

    #: The load averages over 1, 5 and 15 minutes.
    load: Tuple[float, ...]

    @staticmethod
    def read(value: object) -> System:
        shape: Mapping[str, Any] = read.shape(value, "System")
        return System(
            hostname=read.required(shape, "hostname", read.text),
            kernel=read.required(shape, "kernel", read.text),
            cpus=read.required(shape, "cpus", read.integer),
            memory_total_bytes=read.required(shape, "memory_total_bytes", read.integer),
            memory_available_bytes=read.required(shape, "memory_available_bytes", read.integer),
            load=read.required(shape, "load", read.items(read.number)),
        )


@dataclass(frozen=True)
class Worker:
    """Whether the guest has work."""

    #: Idle or busy.
    state: str

    #: Since when.
    since: datetime

    #: When it was last seen busy, or held; null if never, which is where a clone begins.
    last_busy_at: Optional[datetime]

    #: The signals that make it busy.
    because: Tuple[str, ...]

    #: The 1-minute load average, as the kernel has it.
    load1: float

    #: Threads that run or could, from `/proc/loadavg`.
    runnable: int

    #: What else keeps it from being put to sleep: `session` and `inhibit` where they hold, and are none of the signals that make it busy. Left out if nothing does.
    held_by: Tuple[str, ...] = ()

    #: What counts of it: the load that the guest's own work made in the last minute, or since its last wake if that is shorter. Without what it came with at the wake, and without what the agent's own checks made. Null if it could not be told, or by an agent that does not tell.
    load1_counted: Optional[float] = None

    @staticmethod
    def read(value: object) -> Worker:
        shape: Mapping[str, Any] = read.shape(value, "Worker")
        return Worker(
            state=read.required(shape, "state", read.text),
            since=read.required(shape, "since", read.timestamp),
            last_busy_at=read.optional(shape, "last_busy_at", read.timestamp),
            because=read.required(shape, "because", read.items(read.text)),
            load1=read.required(shape, "load1", read.number),
            runnable=read.required(shape, "runnable", read.integer),
            held_by=read.default(shape, "held_by", read.items(read.text), ()),
            load1_counted=read.optional(shape, "load1_counted", read.number),
        )


class WorkerState:
    """Idle or busy."""

    #: No signal says otherwise.
    IDLE: Final = "idle"

    #: At least one signal does.
    BUSY: Final = "busy"
