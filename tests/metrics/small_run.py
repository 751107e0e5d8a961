"""A real run that is small: what the tests of the tools that watch a run are about."""

import os
import re
import subprocess
import time

OPTIONS = {
    "data.relabel.use": "true", "data.image_size": "32", "data.rrc_minimum": "0.35", "model.arch": "resnet18",
    "optim.batch_size": "16", "optim.warmup.epochs": "0", "compute.seed": "5", "compute.num_workers": "1",
    "util.print_freq": "1", "util.val_batch_size": "32",
}


def make_data(bin, scratch, train=160, val=32):
    """Four classes of small pictures with label maps, in `scratch`/data."""
    size = ["--classes", "4", "--size", "64x48", "--objects-max", "2", "--train", str(train), "--val", str(val)]
    subprocess.run([bin / "worker", "synth", scratch / "data", *size], check=True, capture_output=True)


class Run:
    """A coordinator with local workers on the data in `scratch`, its folder `scratch`/runs/`name`."""

    def __init__(self, bin, scratch, name, *more, workers=2, http="127.0.0.1:0", **options):
        data = scratch / "data"
        paths = {"data.data_path": data, "data.relabel.path": data / "labels"}
        flags = [word for key, value in {**OPTIONS, **paths, **options}.items() for word in (f"--{key}", str(value))]
        self.dir, self.log = scratch / "runs" / name, scratch / f"{name}.log"
        command = [bin / "coordinator", "--run-dir", self.dir, "--workers", str(workers), "--local", "--threads", "1", "--http", http]
        environment = {**os.environ, "XDG_CACHE_HOME": str(scratch / "cache")}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*command, *flags, *more], stdout=subprocess.DEVNULL, stderr=log, env=environment)

    def find(self, pattern, within=300):
        """What `pattern` finds in what the coordinator has written, waiting for the first."""
        until = time.monotonic() + within
        while not (found := re.findall(pattern, self.log.read_text())):
            if time.monotonic() > until or self.process.poll() is not None:
                raise AssertionError(f"no {pattern} in\n{self.log.read_text()}")
            time.sleep(0.1)
        return found

    def url(self):
        return self.find(r"dashboard and metrics: (http://[^ /]+/)")[-1]

    def stop(self):
        """Ends it in good order, if it has not ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def wait_for(what, find, within=120):
    """Calls `find` until it gives something true, and gives it."""
    until = time.monotonic() + within
    while not (found := find()):
        if time.monotonic() > until:
            raise AssertionError(f"no {what} within {within} s")
        time.sleep(0.2)
    return found


def check(what, truth, *told):
    if not truth:
        raise AssertionError(f"{what}: {told}")
    print(f"ok  {what}", flush=True)
