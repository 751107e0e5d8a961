#!/usr/bin/env python3
"""Reads a run's event files back with TensorBoard itself: as its library does, and as its server shows them.

    tests/metrics/event_files.py --bin target/release

The run is killed in the middle of an epoch and carried on, so that steps are told twice. Needs the packages tensorboard and
pillow.
"""

import argparse
import io
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from small_run import Run, check, make_data, wait_for

SCALARS = {"train/loss": "loss", "train/learning_rate": "lr", "train/images_per_second": "images_per_second"}
OF_EPOCHS = {"validation/top1": "top1", "validation/loss": "val_loss", "epoch/train_loss": "train_loss"}


def lines(run_dir, kind):
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def close(found, wanted):
    """To the precision of the files: 32 bits."""
    return len(found) == len(wanted) and all(abs(a - b) <= 1e-6 * max(abs(b), 1) for a, b in zip(found, wanted))


def interrupted_run(bin, scratch):
    options = {"optim.epochs": 4, "util.log_images": 2, "checkpoint.every_steps": 4}
    run = Run(bin, scratch, "run", http="none", **options)
    run.find(r"epoch 2/4  step 7/")
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    resumed = Run(bin, scratch, "run", "--resume", http="none", **options)
    check("the run is carried on and ends", resumed.process.wait(600) == 0, resumed.log.read_text())
    return run.dir


def read_back(run_dir):
    """By the library."""
    files = sorted((run_dir / "tensorboard").iterdir())
    check("each life has a file", len(files) >= 2, files)
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    steps = lines(run_dir, "step")
    for tag, column in SCALARS.items():
        told = events.Scalars(tag)
        check(f"{tag} has each step once, as metrics.jsonl", [one.step for one in told] == [line["global_step"] for line in steps]
            and close([one.value for one in told], [line[column] for line in steps]), len(told), len(steps))
    epochs = lines(run_dir, "epoch")
    for tag, column in OF_EPOCHS.items():
        told = events.Scalars(tag)
        check(f"{tag} has each epoch once", close([one.value for one in told], [line[column] for line in epochs]), told, epochs)
    told = events.Histograms("time/step_seconds")
    check("a histogram of steps' lengths an epoch", len(told) == 4, told)
    for one in told:
        value = one.histogram_value
        assert value.num == sum(value.bucket) > 0 and 0 < value.min <= value.max, value
    # The epoch that was interrupted has those that its last coordinator saw; the others have all.
    check("it counts every step", [one.histogram_value.num for one in told][2:] == [10, 10], told)
    images = [tag for tag in tags["images"] if tag.startswith("label_map/")]
    check("pictures of label maps", len(images) == 2, tags["images"])
    for tag in images:
        told = events.Images(tag)
        check(f"{tag} in each epoch", [one.step for one in told] == [9, 19, 29, 39], [one.step for one in told])
        for one in told:
            picture = Image.open(io.BytesIO(one.encoded_image_string))
            assert picture.size == (one.width, one.height) and picture.mode == "RGB", picture
            colours = picture.getcolors(1 << 20)
            assert colours and len(colours) > 100, "an empty picture"
        contents = {one.encoded_image_string for one in told}
        check("another crop in another epoch", len(contents) == 4, len(contents))
    text = events.Tensors("options")[-1].tensor_proto.string_val[0].decode()
    check("the options as text", "    optim:" in text and "epochs: 4" in text, text)
    return steps, images


def served(scratch, steps, images):
    """By the server that people start, over the folder of all runs."""
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", scratch / "runs", "--port", "0", "--host", "127.0.0.1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = next(found[1] for line in server.stderr if (found := re.search(r"at (http://\S+?)/? \(", line)))

        def get(plugin, what, **arguments):
            query = urllib.parse.urlencode(arguments)
            with urllib.request.urlopen(f"{address}/data/plugin/{plugin}/{what}?{query}", timeout=60) as answer:
                return json.load(answer)

        def picture(query):
            with urllib.request.urlopen(f"{address}/data/plugin/images/individualImage?{query}", timeout=60) as answer:
                return Image.open(io.BytesIO(answer.read()))

        run = wait_for("the run", lambda: next(iter(get("scalars", "tags")), None))
        check("the run has its folder's name", run == "run/tensorboard", run)
        told = wait_for("all points", lambda: (points := get("scalars", "scalars", run=run, tag="train/loss"))
            and len(points) >= len(steps) and points)
        check("the server shows each step once", [point[1] for point in told] == [line["global_step"] for line in steps], len(told))
        shown = get("images", "images", run=run, tag=images[0], sample=0)
        check("the server shows the pictures", len(shown) == 4 and all(picture(one["query"]).width > 400 for one in shown), shown)
        histograms = get("histograms", "histograms", run=run, tag="time/step_seconds")
        check("the server shows the histograms", len(histograms) == 4, histograms)
    finally:
        server.terminate()
        server.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the two programs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relabel-events-") as folder:
        scratch = pathlib.Path(folder)
        make_data(args.bin, scratch)
        steps, images = read_back(interrupted_run(args.bin, scratch))
        served(scratch, steps, images)
    print("event files: TensorBoard reads what metrics.jsonl says")


if __name__ == "__main__":
    main()
