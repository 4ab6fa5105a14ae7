"""Keeps as many units `worker@1`, `worker@2`, … running as a pool wants, by `mvmctl fleet serve`:

    python3 autoscaler.py http://127.0.0.1:9152 web
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request


def wanted(url: str, pool: str) -> "int | None":
    """How many the pool wants; `None` if that is not known, which is no reason to end any."""
    try:
        with urllib.request.urlopen(f"{url}/v1/pools/{pool}", timeout=5) as answer:
            return int(json.load(answer)["wanted"])
    except (OSError, ValueError, KeyError, urllib.error.HTTPError):
        return None


def main() -> None:
    url, pool = sys.argv[1:]
    running = 0
    while True:
        number = wanted(url, pool)
        while number is not None and running != number:
            verb, unit = ("start", running + 1) if running < number else ("stop", running)
            subprocess.run(["systemctl", verb, f"worker@{unit}"], check=True)
            running += 1 if verb == "start" else -1
        time.sleep(10)


if __name__ == "__main__":
    main()
