"""What comes of a command that runs: shared by the sessions of either kind."""

from __future__ import annotations

from dataclasses import dataclass

from . import _codec as codec
from ._shapes import ExecExited


@dataclass(frozen=True)
class Output:
    """A piece of what a command printed."""

    #: 1: standard output, also that of a terminal; 2: standard error.
    stream: int
    content: bytes


@dataclass(frozen=True)
class Completed:
    """A command that has ended, and all that it printed."""

    stdout: bytes
    stderr: bytes
    exited: ExecExited

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.exited.exit_code == 0


#: Content is sent in pieces of this size.
PIECE = 65_536
assert PIECE <= codec.MAX_DATA
