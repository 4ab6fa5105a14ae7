"""Does what it is asked of an agent that may misbehave, and says in a word what came of it: what
`mvm-fake-agent check` runs."""

from __future__ import annotations

import asyncio
import os
import sys

from mvm_agent import (
    AgentError,
    AsyncSession,
    DeadlinePassed,
    Health,
    ProtocolError,
    Session,
    Unreachable,
)


def blocking(action: str, path: str) -> str:
    with Session.connect(path, connect_timeout=1.0, timeout=1.0) as session:
        if action == "ping":
            session.ping()
        elif action == "status":
            if session.status().health == Health.HEALTHY:
                return "healthy"
        else:
            with session.watch(heartbeat_secs=0.2) as watch:
                for _ in range(3):
                    next(watch)
    return "ok"


async def asynchronous(action: str, path: str) -> str:
    async with await AsyncSession.connect(path, connect_timeout=1.0, timeout=1.0) as session:
        if action == "ping":
            await session.ping()
        elif action == "status":
            if (await session.status()).health == Health.HEALTHY:
                return "healthy"
        else:
            async with await session.watch(heartbeat_secs=0.2) as watch:
                for _ in range(3):
                    await watch.__anext__()
    return "ok"


def said(kind: str, action: str, path: str) -> str:
    try:
        if kind == "sync":
            return blocking(action, path)
        return asyncio.run(asynchronous(action, path))
    except AgentError:
        return "refused"
    except DeadlinePassed:
        return "timed-out"
    except ProtocolError:
        return "no-agent"
    except Unreachable:
        return "unreachable"


if __name__ == "__main__":
    print(said(*sys.argv[1:4]))
    sys.stdout.flush()
    # A handshake that was given up is finished by a thread: it is not what is asked here.
    os._exit(0)
