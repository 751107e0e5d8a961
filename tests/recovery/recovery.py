"""Measures what the loss of one of three workers costs: this project beside `torchrun`, in turns, on this machine.

In each of --repeats rounds either trains a ResNet-18 on small pictures with three workers; some steps after a
checkpoint one worker is killed (SIGKILL). Reported are the time from the kill to the end of the next step, and the steps
since the checkpoint that are done again. Run by `make recovery`; needs torch and torchvision, as `make parity` installs
them (or PARITY_PYTHON).
"""

import argparse
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BATCH, SIZE, EVERY, KILL_AT = 24, 32, 50, 80
PATIENCE = 120


def wait_until(what, condition):
    until = time.time() + PATIENCE
    while time.time() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise TimeoutError(f"{what} did not come within {PATIENCE} s")


def measured(steps, kill):
    """`steps` gives (wall time, step) of all steps so far. Kills, and returns seconds and repeated steps; infinity and
    none where there is no next step within PATIENCE.
    """
    wait_until("the step to kill at", lambda: steps() and steps()[-1][1] >= KILL_AT)
    kill()
    killed = time.time()
    before = len(steps())
    # A step that was as good as done may still be written down.
    time.sleep(0.3)
    late = [at for at in steps()[before:] if at[0] < killed + 0.05]
    try:
        wait_until("the next step", lambda: len(steps()) > before + len(late))
    except TimeoutError:
        return math.inf, None
    done = steps()
    following = done[before + len(late)]
    last = done[before + len(late) - 1][1]
    return following[0] - killed, max(0, last + 1 - following[1])


def ours(folder):
    worker = str(ROOT / "target/release/worker")
    data = folder / "data"
    subprocess.run(
        [worker, "synth", str(data), "--classes", "4", "--size", "48x48", "--train", "4800", "--val", "8"],
        check=True, capture_output=True,
    )
    command = [
        str(ROOT / "target/release/coordinator"), "--workers", "3", "--min-workers", "2", "--local", "--threads", "1",
        "--run-dir", str(folder / "run"), "--data.data_path", str(data), "--data.image_size", str(SIZE),
        "--model.arch", "resnet18", "--optim.batch_size", str(BATCH), "--optim.epochs", "4", "--optim.lr.init", "0.01",
        "--checkpoint.every_steps", str(EVERY), "--util.print_freq", "1",
    ]

    def steps():
        try:
            lines = (folder / "run/metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        points = [json.loads(line) for line in lines if line.endswith("\n")]
        return [(p["time"], p["global_step"]) for p in points if p["kind"] == "step"]

    with open(folder / "log", "w") as log:
        run = subprocess.Popen(command, stderr=log, cwd=folder)
    try:
        def kill():
            line = next(line for line in (folder / "log").read_text().splitlines() if "joined as rank 1" in line)
            os.kill(int(line.split("(process ")[1].split()[0]), signal.SIGKILL)

        return measured(steps, kill)
    finally:
        run.kill()
        run.wait()


def peer(folder):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "--max-restarts", "3",
        str(ROOT / "tests/recovery/peer.py"), "--folder", str(folder), "--every", str(EVERY), "--batch", str(BATCH),
        "--size", str(SIZE),
    ]

    def steps():
        try:
            lines = (folder / "steps").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(float(at), int(step)) for at, step in map(str.split, lines)]

    # Without this, --standalone has a second group read the addresses that the first left in their common store, and wait
    # for peers that are gone until its time limit.
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with open(folder / "log", "w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        return measured(steps, lambda: os.kill(int((folder / "pid-1").read_text()), signal.SIGKILL))
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def shown(seconds):
    return f"{seconds:6.2f} s" if math.isfinite(seconds) else f"more than {PATIENCE} s"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {"ours": [], "torchrun": []}
    for _ in range(args.repeats):
        for name, measure in (("ours", ours), ("torchrun", peer)):
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(measure(pathlib.Path(folder)))
            seconds, repeated = found[name][-1]
            print(f"{name:9} {shown(seconds)} to the next step, {repeated} steps done again", file=sys.stderr)
    table = {
        name: {
            "seconds": [seconds if math.isfinite(seconds) else None for seconds, _ in rounds],
            "median": shown(statistics.median(seconds for seconds, _ in rounds)),
            "steps_done_again": [repeated for _, repeated in rounds],
        }
        for name, rounds in found.items()
    }
    if args.json:
        print(json.dumps(table, indent=2))
    else:
        for name, row in table.items():
            print(f"{name:9} median {row['median']}, steps done again {row['steps_done_again']}")


main()
