"""A fine-tune in several processes of one machine, one for each GPU: started for accelerate, followed by its files."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from workbench.disk import write_whole
from workbench.progress import track
from workbench.runs import Run, RunError
from workbench.spec import Spec

GLANCE = 0.2  # seconds between two looks at the log
ENDING = 600.0  # seconds that processes have for their last step and checkpoint
OWNER = "WORKBENCH_OWNER"  # the environment's name of the process without which its own are to end


def launched(spec: Spec, run: Run) -> Run:
    """Train in `spec.processes` processes until the run is finished, or stopped; then it goes on when called again.

    Raises:
        RunError: when a process failed.
    """
    with _processes(spec, run) as (process, said):
        watch = _Watch(run, process)
        left = spec.steps - watch.done
        for _ in track(range(left), f"tuning {run.name}", left):
            if not watch.step():
                break
        asked = process.poll() is None and watch.done < spec.steps
        if asked:
            _ask_to_end(process)
        with suppress(subprocess.TimeoutExpired):  # then they are killed, and go on from their last checkpoint
            process.wait(ENDING)
        watch.look()
        said.seek(0)
        text = said.read()
    status = run.status
    run.hear({"kind": "status", **status})
    if status["state"] != "finished" and not (asked and status["state"] == "paused"):
        reason = status.get("error") or _last_word(text)
        raise RunError(f"One of the {spec.processes} processes failed: {reason}")
    return run


def _last_word(text: str) -> str:
    """The last line in which a process said what is wrong."""
    lines = [line.strip() for line in text.splitlines() if "workbench: " in line or "Error" in line]
    return lines[-1] if lines else "it said nothing"


@contextmanager
def _processes(spec: Spec, run: Run) -> Iterator[tuple[subprocess.Popen, IO[str]]]:
    """The launcher, and the file to which all its processes write; none of them is left behind."""
    given, said = run.folder / "launched.json", run.folder / "processes.log"
    write_whole(given, json.dumps(spec.plain).encode())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What accelerate's own launcher runs too; that one starts a single process where there is no GPU.
    options = [f"--nproc_per_node={spec.processes}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "workbench.cli", "tune", str(given)]
    with open(said, "w+", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, OWNER: str(os.getpid())})
        try:
            yield process, file
        finally:
            for each in (*_workers(process), process):
                each.kill()
            process.wait()


def _workers(process: subprocess.Popen) -> list[Any]:
    """The processes that train."""
    import psutil

    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _ask_to_end(process: subprocess.Popen) -> None:
    """Have all processes finish their step and the first write a checkpoint; the launcher ends after them."""
    for each in _workers(process):
        each.send_signal(signal.SIGTERM)


def owner_is_gone() -> bool:
    """Whether this process was launched by one that is no more."""
    import psutil

    owner = os.environ.get(OWNER)
    return owner is not None and not psutil.pid_exists(int(owner))


class _Watch:
    """Tells the run's listener each line that its processes add to the log, and counts the steps."""

    def __init__(self, run: Run, process: subprocess.Popen) -> None:
        self._run, self._process = run, process
        self.done = max(run.checkpoints, default=0)
        self._told = sum(record["step"] <= self.done for record in run.records)  # those after it are taken back
        self._started = False

    def step(self) -> bool:
        """Wait for one more step; False once the processes have ended."""
        before = self.done
        while self.done == before:
            if self._process.poll() is not None:
                return False
            time.sleep(GLANCE)
            self.look()
        return True

    def look(self) -> None:
        """Pass on what has been written since the last look; until the processes begin, the log is that of before."""
        status, ended = self._run.status, self._process.poll() is not None
        if not self._started and not ended and status["state"] != "running":
            return
        if not self._started:
            self._started = True
            self._run.hear({"kind": "status", **status, "state": "running"})
        records = self._run.records
        for record in records[self._told :]:
            self._run.hear(record)
        self._told = max(self._told, len(records))
        self.done = max((record["step"] for record in records if record["kind"] == "step"), default=0)
