"""What can go wrong. Programs decide by the class, and by `AgentError.code`; texts are for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Tuple

if TYPE_CHECKING:
    from ._shapes import ErrorAnswer, Step


#: What `Unreachable` says of a session that was closed.
CLOSED = "the session is closed"


class MvmError(Exception):
    """The base of all of them."""


class Unreachable(MvmError):
    """There is no way to the guest: no socket, nobody who listens, a connection that was ended, or a
    session that is closed."""


class DeadlinePassed(MvmError):
    """No answer within the deadline. Whether the request was carried out is unknown."""


class ProtocolError(MvmError):
    """What answered does not speak the agent's protocol."""


class AgentError(MvmError):
    """The agent refused a request, or it failed."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(f"{answer.code}: {answer.message}")
        #: For programs: one of `ErrorCode`, or a word that a newer agent knows.
        self.code: str = answer.code
        #: For people.
        self.message: str = answer.message
        #: Whether the same request may succeed later.
        self.retryable: bool = answer.retryable
        #: What was done, where work was done.
        self.steps: Optional[Tuple[Step, ...]] = answer.steps or None
