"""Runs of this project as a user starts them, and what they say of themselves."""

import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import time

PATIENCE = 600


def train(root, pictures, scratch, steps, arch, size, batch, workers=1, threads=1, precision="fp32", checkpoint=None):
    """Trains `steps` steps with local workers. As peers/train.py prints: images a second by the median step, seconds from the
    start to the end of the first step, the most memory of a worker in MB, and how long a checkpoint at step `checkpoint`
    held training up.
    """
    folder = scratch / "run"
    shutil.rmtree(folder, ignore_errors=True)
    options = {
        "data.data_path": pictures, "data.image_size": size, "model.arch": arch, "model.num_classes": 1000,
        "optim.batch_size": batch, "optim.epochs": 1000, "optim.lr.init": 0.01, "util.print_freq": 1,
        "compute.num_workers": 1, "compute.precision": precision, "data.relabel.use": "true",
        "data.relabel.path": pictures / "labels", "checkpoint.every_epochs": 0, "checkpoint.every_steps": checkpoint or 0,
    }
    command = [root / "target/release/coordinator", "--local", "--workers", workers, "--threads", threads]
    command += ["--run-dir", folder, "--http", "none"]
    command += [part for key, value in options.items() for part in (f"--{key}", value)]
    log = scratch / "log"
    with open(log, "w") as lines:
        began = time.time()
        run = subprocess.Popen(
            [str(part) for part in command], stdout=lines, stderr=lines,
            env=os.environ | {"RUST_LOG": "info,worker::train=debug"},
        )
    try:
        wanted = steps if checkpoint is None else max(steps, checkpoint + 1)
        times = steps_of(run, folder, log, wanted)
        memory = max(peak_memory(pid) for pid in workers_of(log))
    finally:
        run.send_signal(signal.SIGINT)
        run.wait()
    return {
        "rate": batch / statistics.median(later - before for before, later in zip(times, times[1:])),
        "first_step": times[0] - began,
        "memory": memory,
        "saving": saving(folder) if checkpoint else None,
    }


def steps_of(run, folder, log, wanted):
    """The wall times at which the first steps had been done."""
    until = time.time() + PATIENCE
    metrics = folder / "metrics.jsonl"
    while time.time() < until and run.poll() is None:
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        points = [json.loads(line) for line in lines if line.endswith("\n")]
        times = [point["time"] for point in points if point["kind"] == "step"]
        if len(times) >= wanted:
            return times
        time.sleep(0.05)
    raise RuntimeError(f"no {wanted} steps:\n{log.read_text()[-4000:]}")


def workers_of(log):
    return [int(pid) for pid in re.findall(r"\(process (\d+) on [^)]*\) joined as rank", log.read_text())]


def peak_memory(pid):
    """In MB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def saving(folder):
    """The first pause for a checkpoint in seconds, as rank 0 logs it."""
    units = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
    time = r"([\d.]+)(ns|µs|ms|s)\b"
    for log in sorted((folder / "logs").iterdir()):
        text = log.read_text()
        parts = [re.search(words + time, text) for words in ("was begun within ", "waited ")]
        if all(parts):
            return sum(float(part[1]) * units[part[2]] for part in parts)
    raise RuntimeError(f"no checkpoint was written: {folder / 'logs'}")
