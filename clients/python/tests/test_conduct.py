"""Both sessions held against every way to misbehave that `mvm-fake-agent` knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any


def program() -> str:
    fake = os.environ.get("MVM_TEST_FAKE_AGENT")
    if not fake:
        raise RuntimeError(
            "MVM_TEST_FAKE_AGENT does not name mvm-fake-agent: run `cargo xtask test python`"
        )
    return fake


def report(kind: str) -> Any:
    driver = str(Path(__file__).with_name("driver.py"))
    command = [program(), "check", "--json", "--", sys.executable, driver, kind]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=300)
    return json.loads(ran.stdout)


class Conduct(unittest.TestCase):
    def stands_all_of_it(self, kind: str) -> None:
        told = report(kind)
        failed = [check for check in told["checks"] if check["outcome"] != "passed"]
        self.assertEqual(failed, [])
        self.assertEqual(told["verdict"], "conforms")
        self.assertGreater(told["required"]["passed"], 30)

    def test_the_blocking_session_stands_all_of_it(self) -> None:
        self.stands_all_of_it("sync")

    def test_the_asynchronous_session_stands_all_of_it(self) -> None:
        self.stands_all_of_it("async")


if __name__ == "__main__":
    unittest.main()
