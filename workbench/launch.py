"""A fine-tune in several processes of one machine, one for each GPU: launched by accelerate, followed by its files."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    options = [f"--num_processes={spec.processes}", "--num_machines=1", f"--main_process_port={port}"]
    options += [f"--mixed_precision={spec.precision}", "--dynamo_backend=no"]
    options += ["--cpu"] if spec.device == "cpu" else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "workbench.cli", "tune", str(given)]
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
    """Tells the run's listener each new line of its log, and counts the steps."""

    def __init__(self, run: Run, process: subprocess.Popen) -> None:
        self._run, self._process = run, process
        self.done = max(run.checkpoints, default=0)
        self._told, self._started = 0, False

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
        """Pass on what has been written since the last look."""
        status = self._run.status
        if not self._started and status["state"] != "running":
            return  # the log is still that of before
        records = self._run.records
        if not self._started:
            self._started, self._told = True, len(records)
            self._run.hear({"kind": "status", **status})
        for record in records[self._told :]:
            self._run.hear(record)
        self._told = len(records)
        self.done = max((record["step"] for record in records if record["kind"] == "step"), default=0)
