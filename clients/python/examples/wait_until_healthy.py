"""Waits until a guest's services are healthy: `python3 wait_until_healthy.py V_SOCK [SECONDS]`."""

import asyncio
import sys

from mvm_agent import AsyncSession, Health, MvmError


async def until_healthy(path: str) -> None:
    while True:
        try:
            async with await AsyncSession.connect(path) as session:
                async with await session.watch() as watch:
                    if watch.status.health == Health.HEALTHY:
                        return
                    async for _ in watch:
                        async with await AsyncSession.connect(path) as other:
                            if (await other.status()).health == Health.HEALTHY:
                                return
        except MvmError as error:
            # It boots, or is restored just now.
            print(f"not yet: {error}", file=sys.stderr)
            await asyncio.sleep(0.2)


async def main() -> None:
    path, at_most = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    await asyncio.wait_for(until_healthy(path), at_most)


if __name__ == "__main__":
    asyncio.run(main())
