"""``runtime.serve`` in a process of its own, and what such a process holds."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from runtime.closing import Closing

# Until it listens, and until it has ended.
SECONDS = 120.0


@dataclass(frozen=True)
class Resources:
    """Resident memory in MiB, threads, and open file descriptors."""

    mib: float
    threads: int
    descriptors: int


def front_ends(process: int) -> list[int]:
    """Return the front ends that a process has started, by Linux's /proc."""
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        children = (Path(f"/proc/{number}") for number in file.read_text().split())
        found += [int(child.name) for child in children if b"spawn_main" in (child / "cmdline").read_bytes()]
    return sorted(found)


def resources(process: int) -> Resources:
    """Return what a process holds now, by Linux's /proc."""
    place = Path(f"/proc/{process}")
    pages = int((place / "statm").read_text().split()[1])
    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Resources(
        round(mib, 1), len(list((place / "task").iterdir())), len(list((place / "fd").iterdir()))
    )


class ServiceProcess(Closing):
    """The command, which listens when this is made.

    Attributes:
        address: host and port.
        pid: of the process.
    """

    def __init__(self, *arguments: object) -> None:
        command = [
            sys.executable,
            "-m",
            "runtime.serve",
            *map(str, arguments),
            "--port",
            "0",
            "--log",
            "none",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self._said: list[str] = []
        found = re.search(r"http://([\d.]+):(\d+)", self._process.stdout.readline())
        if found is None:
            raise RuntimeError(f"the service did not begin: {self._process.stderr.read()}")
        self.address = (found[1], int(found[2]))
        self._reader = threading.Thread(target=lambda: self._said.extend(self._process.stderr), daemon=True)
        self._reader.start()

    def resources(self) -> Resources:
        """Return what it and its front ends hold now; memory that they share counts for each."""
        each = [resources(process) for process in (self.pid, *front_ends(self.pid))]
        return Resources(
            round(sum(one.mib for one in each), 1),
            sum(one.threads for one in each),
            sum(one.descriptors for one in each),
        )

    def end(self) -> list[str]:
        """End it by SIGTERM; return what is wrong with how it ended."""
        if self._process.poll() is not None:
            return [
                f"the service ended by itself with {self._process.returncode}: {''.join(self._said)[-2000:]}"
            ]
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(SECONDS)
        self._reader.join(SECONDS)
        said = "".join(self._said)
        found = [] if status == 0 else [f"exit status {status}"]
        at = said.find("Traceback")
        return found if at < 0 else [*found, said[max(0, at - 300) : at + 3000]]

    def close(self) -> None:
        """Kill it, where it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(SECONDS)
        self._process.stdout.close()
        self._process.stderr.close()
