"""Takes a snapshot of a Firecracker VM by hand: `python3 firecracker_snapshot.py API_SOCK V_SOCK DIR`.

The guest gets ready, the VM is paused and written, and then it runs on. Whatever fails, the guest is
woken."""

import http.client
import json
import os
import socket
import sys

from mvm_agent import Session


class Firecracker(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)

    def ask(self, method: str, path: str, body: object) -> None:
        self.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.getresponse()
        said = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {said.decode()}")


def main() -> None:
    api, vsock, folder = sys.argv[1:]
    vmm = Firecracker(api)
    os.mkdir(folder, 0o700)
    with Session.connect(vsock) as session:
        token = session.sleep_prep().token
    # No connection to the guest is open from here on.
    vmm.ask("PATCH", "/vm", {"state": "Paused"})
    try:
        files = {
            "snapshot_type": "Full",
            "snapshot_path": f"{folder}/state",
            "mem_file_path": f"{folder}/memory",
        }
        vmm.ask("PUT", "/snapshot/create", files)
    finally:
        vmm.ask("PATCH", "/vm", {"state": "Resumed"})
        with Session.connect(vsock) as session:
            session.wake(token=token, cause="aborted")
    print(f"clones are woken with the token {token}")


if __name__ == "__main__":
    main()
