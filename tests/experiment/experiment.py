"""Does ReLabel help? The paper's comparison at a size that two CPU cores do in under half an hour; `make experiment`.

An annotator is trained on pictures of one object. It labels the student's training pictures, which show two to four
objects of different classes while their folder names one. Students differ in their targets alone: same pictures,
network, schedule and seeds. All training is done by our coordinator and workers, as a user would start them.

Every step leaves its settings and outcome in a JSON file in the folder of the experiment. A second start repeats no
step whose settings are the same, and goes on with runs that were interrupted; --fresh starts over. --why trains
other students in the same folder, on label maps that are changed on purpose: see study.py; --resize some on pixels
resized exactly: see resize.py. --size strong-annotator is the comparison with an annotator trained on twice as many.
"""

import argparse
import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path

from comparison import Experiment
from design import SIZES
from resize import Resize
from steps import Failed
from study import Study


def claim(folder, fresh):
    """Takes the folder for this process, for as long as what is returned lives, and empties it where asked to."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = folder / "experiment.lock"
    if not mine.exists() and any(folder.iterdir()):
        raise Failed(f"{folder} holds something else than an experiment; name another --dir")
    lock = open(mine, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failed(f"another start works in {folder}") from None
    if fresh:
        for part in folder.iterdir():
            if part.is_dir():
                shutil.rmtree(part)
            elif part != mine:
                part.unlink()
    return lock


def main():
    release = Path(__file__).resolve().parents[2] / "target" / "release"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path("experiment"), help="folder of the experiment")
    parser.add_argument("--worker", type=Path, default=release / "worker")
    parser.add_argument("--coordinator", type=Path, default=release / "coordinator")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--size", choices=SIZES, default="full")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--why", action="store_true", help="teach with maps changed on purpose: what is missed?")
    instead.add_argument("--resize", action="store_true", help="does the default resize cost accuracy?")
    parser.add_argument("--fresh", action="store_true", help="remove what earlier starts left, and start over")
    args = parser.parse_args()
    for program in [args.worker, args.coordinator]:
        if not program.is_file():
            parser.error(f"{program} is not there; run `make build`")
    try:
        with claim(args.dir, args.fresh):
            experiment = (Study if args.why else Resize if args.resize else Experiment)(args)
            for number in [signal.SIGINT, signal.SIGTERM]:
                signal.signal(number, experiment.stop)
            experiment.run()
    except Failed as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
