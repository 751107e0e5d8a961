"""Steps that are done once, and a clock that says how far all of them are."""

import contextlib
import json
import shutil
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import report


class Failed(Exception):
    """What the person who started this must know, in one line."""


def read_json(path):
    return json.loads(path.read_text())


def write_json(path, value):
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1, default=str) + "\n")
    part.replace(path)


class Step:
    """A folder, the settings that its content is a function of, and the outcome, once it is known.

    `step.json` is written when work begins, so that a part of other settings is never gone on with, and again
    with the outcome at its end. `seconds` is the time that the work took, `cpu` that of all cores that it used:
    this process's own and, added by `call`, that of the programs it ran. An attempt that was killed is not in it.
    """

    def __init__(self, folder, settings):
        self.dir, self.settings = folder, json.loads(json.dumps(settings))
        self.outcome, self.seconds, self.cpu = None, 0.0, 0.0

    def do(self, make):
        """Does the work unless it is done. Returns whether it was."""
        file = self.dir / "step.json"
        known = read_json(file) if file.is_file() else {}
        if known.get("settings") != self.settings:
            shutil.rmtree(self.dir, ignore_errors=True)
            known = {}
        if known.get("outcome") is None:
            self.dir.mkdir(parents=True, exist_ok=True)
            spent = known.get("seconds", 0.0)
            self.cpu = known.get("cpu", 0.0)
            began, began_cpu = time.monotonic(), time.thread_time()
            state = {"settings": self.settings, "outcome": None, "seconds": spent, "cpu": self.cpu}
            write_json(file, state)
            try:
                state["outcome"] = make()
            finally:
                state["seconds"] = spent + time.monotonic() - began
                state["cpu"] = self.cpu + time.thread_time() - began_cpu
                write_json(file, state)
            known, cached = state, False
        else:
            cached = True
        self.outcome, self.seconds, self.cpu = known["outcome"], known["seconds"], known["cpu"]
        return cached


def together(work, items, jobs):
    """Does `work` on all items, `jobs` at a time; after a failure begins no more, and raises it."""
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [pool.submit(work, item) for item in items]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Clock:
    """Progress lines with an estimate of the time left, from the time that the work so far has taken."""

    EVERY = 30.0

    def __init__(self, costs):
        self.costs = costs
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.before = 0.0  # done by earlier starts
        self.now = 0.0  # done by this one

    def done(self, kind, share, cached):
        with self.lock:
            if cached:
                self.before += share * self.costs[kind]
            else:
                self.now += share * self.costs[kind]

    def skip(self, kind, share):
        """A part of work that is about to go on was done by an earlier start."""
        with self.lock:
            self.before += share * self.costs[kind]
            self.now -= share * self.costs[kind]

    def left(self, running=0.0):
        """Text on the time left."""
        with self.lock:
            now = self.now + running
            rest = sum(self.costs.values()) - self.before - now
        if now <= 0.0:
            return ""
        minutes = (time.monotonic() - self.began) * rest / now / 60
        return f", about {minutes:.0f} min left" if rest > 0.0 else ""

    def say(self, cached, text, running=0.0):
        spent = int(time.monotonic() - self.began)
        was = " (done before)" if cached else self.left(running)
        # One write, as several threads may speak at once.
        print(f"[{spent // 60:02}:{spent % 60:02}] {text}{was}\n", end="", flush=True)

    @contextlib.contextmanager
    def watch(self, kind, runs, share=1.0):
        """Says from time to time how far `runs()` are: pairs of a run's folder and its number of epochs."""
        stop = threading.Event()

        def look():
            while not stop.wait(self.EVERY):
                active = [(run, len(report.epochs(run)), total) for run, total in runs()]
                running = sum(done / total for _, done, total in active) * share * self.costs[kind]
                if active:
                    shown = ", ".join(f"{run.parent.name} epoch {done}/{total}" for run, done, total in active)
                    self.say(False, shown, running)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
