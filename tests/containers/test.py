"""Trains in containers of the images localhost/relabel-coordinator:test and localhost/relabel-worker:test, which run as
Kubernetes would run them: not as root, on a read-only root file system, without capabilities. Ends with a line a test.
With IMAGE_CUDA set, localhost/relabel-worker-cuda:test is looked into as well.

    test.py NETWORK SCRATCH      NETWORK is a network namespace with a loopback interface, SCRATCH an empty folder
"""

import json
import os
import pathlib
import subprocess
import sys
import time
import tomllib

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = pathlib.Path(__file__).resolve().parents[2]
NETWORK, SCRATCH = sys.argv[1], pathlib.Path(sys.argv[2])
IMAGES = {name: f"localhost/relabel-{name}:test" for name in ["coordinator", "worker"]}
USER = 10001
PATIENCE = 120
OPTIONS = ["--data.data_path=/data", "--data.relabel.use=true", "--data.relabel.path=/data/labels", "--data.image_size=32",
           "--model.arch=resnet18", "--optim.batch_size=16", "--optim.epochs=2", "--optim.lr.init=0.01", "--compute.num_workers=1",
           "--compute.seed=5", "--util.print_freq=1"]


def podman(*args, check=True):
    done = subprocess.run(["podman", *args], capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"podman {' '.join(args)}: {done.stderr}")
    return done


class Container:
    """One that runs, with /data to read and /runs to write."""

    def __init__(self, image, *args, limits=()):
        volumes = [f"--volume={SCRATCH}/data:/data:ro", f"--volume={SCRATCH}/runs:/runs"]
        hard = ["--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges"]
        self.id = podman("run", "--detach", f"--label=relabel-test={NETWORK}", f"--network=ns:/run/netns/{NETWORK}",
                         *hard, *volumes, *limits, IMAGES[image], *args).stdout.strip()

    def exec(self, *command):
        return podman("exec", self.id, *command, check=False)

    def healthy(self):
        return podman("healthcheck", "run", self.id, check=False).returncode == 0

    def log(self):
        done = podman("logs", self.id)
        return done.stdout + done.stderr

    def wait(self):
        """Its exit code."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            state = json.loads(podman("inspect", self.id).stdout)[0]["State"]
            if state["Status"] in ("exited", "stopped"):
                return state["ExitCode"]
            time.sleep(0.2)
        raise AssertionError(f"still running after {PATIENCE} s:\n{self.log()}")


def until(what, true, container):
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit, f"never {what}:\n{container.log()}"
        time.sleep(0.1)


def lines(run, kind):
    file = SCRATCH / "runs" / run / "metrics.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in found if line.get("kind") == kind]


def pair(run, *options):
    coordinator = Container("coordinator", "--workers=1", f"--run-dir=/runs/{run}", "--listen=127.0.0.1:4747",
                            *OPTIONS, *options)
    worker = Container("worker", "--coordinator=http://127.0.0.1:4747", "--cpu", "--threads=1", "--connect-timeout=60",
                       "--cache-dir=/tmp/relabel")
    return coordinator, worker


def makes_a_data_set():
    for name in ["data", "runs"]:
        (SCRATCH / name).mkdir()
        subprocess.run(["chown", f"{USER}:{USER}", SCRATCH / name], check=True)
    out = podman("run", "--rm", f"--network=ns:/run/netns/{NETWORK}", "--read-only", "--cap-drop=all",
                 f"--volume={SCRATCH}/data:/out", IMAGES["worker"], "synth", "/out/set", "--classes=4", "--size=64x48",
                 "--objects-max=2", "--train=80", "--val=16")
    made = SCRATCH / "data" / "set"
    assert (made / "train").is_dir(), out.stderr
    # It may only make a folder; the containers see its contents as /data.
    for part in made.iterdir():
        part.rename(SCRATCH / "data" / part.name)
    made.rmdir()
    return f"{sum(1 for each in (SCRATCH / 'data').rglob('*') if each.is_file())} files"


def trains():
    coordinator, worker = pair("whole")
    codes = [coordinator.wait(), worker.wait()]
    assert codes == [0, 0], f"{codes}\n{coordinator.log()}\n{worker.log()}"
    steps = lines("whole", "step")
    assert len(steps) == 10, f"{len(steps)} steps"
    saved = sorted((SCRATCH / "runs" / "whole" / "checkpoints").glob("*.safetensors"))
    assert saved and all(file.stat().st_uid == USER for file in saved), saved
    return f"10 steps, loss {steps[0]['loss']:.2f} to {steps[-1]['loss']:.2f}"


def is_unhealthy_where_nothing_listens():
    away = Container("coordinator", "--workers=1", "--run-dir=/runs/away", "--listen=127.0.0.1:4777", "--http=none", *OPTIONS)
    until("listening", lambda: "listening on" in away.log(), away)
    assert not away.healthy(), "nothing listens at 4747, and the health check has not seen it"
    podman("stop", "--time=20", away.id)


def saves_when_it_is_stopped_and_goes_on():
    coordinator, worker = pair("halved", "--optim.epochs=400")
    until("three steps", lambda: len(lines("halved", "step")) >= 3, coordinator)
    assert coordinator.healthy(), "the health check says no while training"
    for container in [coordinator, worker]:
        assert container.exec("id", "-u").stdout.strip() == str(USER)
        written = container.exec("sh", "-c", "echo > /usr/local/bin/other")
        assert written.returncode and "Read-only file system" in written.stderr, written.stderr
        status = container.exec("cat", "/proc/1/status").stdout
        assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status, status
    podman("stop", "--time=90", coordinator.id)
    code = coordinator.wait()
    assert code == 143, f"it ended with {code}:\n{coordinator.log()}"
    assert worker.wait() == 0 or "stopping" in worker.log(), worker.log()
    assert list((SCRATCH / "runs" / "halved" / "checkpoints").glob("*.safetensors")), coordinator.log()
    coordinator, worker = pair("halved", "--optim.epochs=400")
    count = len(lines("halved", "step"))
    until("another step", lambda: len(lines("halved", "step")) > count, coordinator)
    # The worker is told by the signal that its image names.
    podman("stop", "--time=30", worker.id)
    assert worker.wait() == 143, worker.log()
    podman("stop", "--time=90", coordinator.id)
    steps = [(line["epoch"], line["step"]) for line in lines("halved", "step")]
    assert len(set(steps)) == len(steps), "a step was done twice"
    return f"{len(steps)} steps"


def bill_is_complete(image, package, program):
    text = podman("run", "--rm", "--network=none", "--entrypoint=cat", IMAGES[image], f"/usr/share/sbom/{program}.cdx.json").stdout
    errors = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    assert errors is None, str(errors)
    bill = json.loads(text)
    own = bill["metadata"]["component"]
    named = {(each["name"], each["version"]) for each in [own, *bill["components"]]}
    assert own["name"] == package and len(named) == len(bill["components"]) + 1, own
    # The program itself tells of many crates, by the places in them that may panic.
    found = podman("run", "--rm", "--network=none", "--entrypoint=grep", IMAGES[image], "--text", "--only-matching",
                   "--no-filename", "registry/src/[^/]*/[^/]*/", f"/usr/local/bin/{program}").stdout
    told = {tuple(line.split("/")[3].rsplit("-", 1)) for line in found.split()}
    assert len(told) > 30 and told <= named, f"{len(told)}, of which the bill lacks {sorted(told - named)}"
    sums = {(each["name"], each["version"]): each.get("checksum")
            for each in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}
    for each in bill["components"]:
        expected = sums[each["name"], each["version"]]
        assert [hash_["content"] for hash_ in each.get("hashes", [])] == ([expected] if expected else []), each
        assert expected is None or each["licenses"], each
    return f"{len(named)} crates, {len(told)} of them seen in the program"


def size(image):
    return json.loads(podman("image", "inspect", IMAGES[image]).stdout)[0]["Size"] / 1e6


def is_what_it_says():
    for image in IMAGES:
        config = json.loads(podman("image", "inspect", IMAGES[image]).stdout)[0]
        assert config["User"] == f"{USER}:{USER}", config["User"]
        shown = podman("run", "--rm", "--network=none", "--read-only", IMAGES[image], "--version").stdout
        assert image in shown.split()[0], shown
    libraries = podman("run", "--rm", "--network=none", "--entrypoint=sh", IMAGES["coordinator"], "-c",
                       "find / -xdev \\( -name 'libtorch*' -o -name 'cc1*' -o -name cargo \\) 2>/dev/null; true").stdout
    assert not libraries, libraries
    return ", ".join(f"{image} {size(image):.0f} MB" for image in IMAGES)


def has_what_a_gpu_wants():
    image = "localhost/relabel-worker-cuda:test"
    hard = ["--rm", "--network=none", "--read-only", "--cap-drop=all"]
    found = json.loads(podman("run", *hard, image, "doctor", "--json").stdout)["machine"]
    told = []
    for part in ["cuda_runtime", "cudnn", "nccl"]:
        assert "found" in found[part], f"{part}: {found[part]}"
        assert found[part]["found"]["path"].startswith("/opt/relabel/"), found[part]
        told.append(f"{part} {found[part]['found']['version']}")
    # This is what is loaded when a GPU is asked for; only the driver may lack, which it loads later.
    wants = podman("run", *hard, "--entrypoint=ldd", image, "/opt/relabel/torch/lib/libtorch_cuda.so").stdout
    lacks = [line.strip() for line in wants.splitlines() if "not found" in line]
    assert not lacks and "libcudnn" in wants, f"{lacks}\n{wants}"
    size = json.loads(podman("image", "inspect", image).stdout)[0]["Size"] / 1e6
    return f"{', '.join(told)}, {size:.0f} MB"


TESTS = {
    "images run as a user, without what only builds them": is_what_it_says,
    "the coordinator's bill of materials": lambda: bill_is_complete("coordinator", "coordinator", "coordinator"),
    "the worker's bill of materials": lambda: bill_is_complete("worker", "relabel-worker", "worker"),
    "a worker's container makes a data set": makes_a_data_set,
    "containers train": trains,
    "the health check fails where nothing listens": is_unhealthy_where_nothing_listens,
    "a stopped container saves, and another goes on": saves_when_it_is_stopped_and_goes_on,
}
if os.environ.get("IMAGE_CUDA", "0") != "0":
    TESTS["the image for GPUs has what they want"] = has_what_a_gpu_wants


def main():
    failed = 0
    for name, test in TESTS.items():
        began = time.monotonic()
        try:
            words = test() or ""
            print(f"ok     {name}{': ' if words else ''}{words} ({time.monotonic() - began:.0f} s)", flush=True)
        except (AssertionError, KeyError, OSError, subprocess.CalledProcessError) as error:
            failed += 1
            print(f"FAILED {name}: {error}", flush=True)
        # The next wants the ports, whatever became of this one's.
        left = podman("ps", "--all", "--quiet", "--filter", f"label=relabel-test={NETWORK}").stdout.split()
        if left:
            podman("rm", "--force", "--time=0", *left)
    print(f"{len(TESTS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
