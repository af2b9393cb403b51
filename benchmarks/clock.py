"""Time and memory of several ways to do the same, measured in one process and in turns."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


class Clock:
    """Seconds (of the processor on a CPU, of the clock on a GPU) and memory of several ways to do the same."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def once(self, work: Callable) -> tuple[float, float, object]:
        """Seconds and growth of memory in megabytes of one call, and what it returns."""
        gc.collect()
        self._wait()
        before, now = self._reset(), time.perf_counter if self.cuda else time.process_time
        started = now()
        found = work()
        self._wait()
        return now() - started, self._peak() - before, found

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _reset(self) -> float:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 1e6
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")

    def _peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e6 if self.cuda else _status("VmHWM")

    def turns(self, repeats: int, **ways: Callable) -> tuple[dict[str, float], dict[str, float], dict[str, object]]:
        """Median seconds, largest growth of memory and last result of each way."""
        times: dict[str, list[float]] = {name: [] for name in ways}
        memory, found = dict.fromkeys(ways, 0.0), {}
        for _ in range(repeats):
            for name, work in ways.items():
                seconds, grown, found[name] = self.once(work)
                times[name].append(seconds)
                memory[name] = max(memory[name], grown)
        return {name: statistics.median(values) for name, values in times.items()}, memory, found


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1e3
