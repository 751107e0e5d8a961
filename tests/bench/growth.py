"""Measures how this project's figures grow on the machine at hand: with threads, workers, images in a data set and label maps.

Run by `make bench-growth`. The tables go to standard output and bench/growth.md, all numbers to bench/growth.json.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import ours
import pictures
import rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
REPEATS = 3
# Names that one file may have: some file systems have no more.
LINKS = 60_000
CLASSES = 1000
IMAGENET = 1_281_167


def bench(*arguments):
    """What the example prints, and the most memory that it had, in MB."""
    command = [str(part) for part in (rows.example(ROOT, "bench"), *arguments)]
    with tempfile.TemporaryFile("w+") as lines:
        process = subprocess.Popen(command, stdout=lines)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        lines.seek(0)
        return json.loads(lines.read().splitlines()[-1]), usage.ru_maxrss / 1024


def median(figures):
    return statistics.median(list(figures))


def threads(out, scratch):
    """JPEGs to augmented tensors: loader threads, and images a second."""

    def rate(number):
        done, _ = bench("images", "--data", out / "pictures/train", "--images", 1500 * number, "--threads", number)
        return done["images"] / done["seconds"]

    most = os.cpu_count()
    return [{"threads": n, "images/s": median(rate(n) for _ in range(REPEATS))} for n in sorted({1, most // 2, most, 2 * most})]


def workers(out, scratch):
    """Training ResNet-18 at 64 px, batch 64, one thread a worker: workers on this machine, and images a second."""

    def rate(number):
        return ours.train(ROOT, out / "pictures", scratch, steps=9, arch="resnet18", size=64, batch=64, workers=number)["rate"]

    return [{"workers": n, "images/s": median(rate(n) for _ in range(REPEATS))} for n in (1, 2, 4, 8)]


def index(out, scratch):
    """The index of a data set: images, seconds to list the names, seconds from the cache, and MB of the process."""
    found = []
    for images in (10**3, 10**4, 10**5, 10**6, 10**7):
        data, cache = scratch / "names", scratch / "cache"
        make_names(data, images)
        # Folders that have just been changed are not kept in the cache.
        time.sleep(4)
        # Twice: what is measured is not the disk.
        (listed, _), (listed, memory) = (bench("index", "--data", data) for _ in range(2))
        bench("index", "--data", data, "--cache", cache)
        cached, _ = bench("index", "--data", data, "--cache", cache)
        if listed["images"] != images or cached["images"] != images:
            raise RuntimeError(f"{listed['images']} of {images} names were found")
        print(f"growth: {images:,} names are indexed", file=sys.stderr, flush=True)
        found.append({"images": images, "listed s": listed["seconds"], "cached s": cached["seconds"], "MB": memory})
        # Many times faster than Python's own.
        subprocess.run(["rm", "-r", data, cache], check=True)
    return found


def make_names(data, images):
    """So many names as ImageNet's in class folders: links to few files."""
    target = None
    for number in range(images):
        if number % LINKS == 0:
            target = data.parent / f"target{number // LINKS}"
            target.touch()
        folder = data / f"n{number % CLASSES:08}"
        if number < CLASSES:
            folder.mkdir(parents=True)
        os.link(target, folder / f"n{number % CLASSES:08}_{number}.JPEG")
    for target in data.parent.glob("target*"):
        target.unlink()


def labels(out, scratch):
    """Label maps of 15x15 cells and 5 classes each: how they are kept, bytes a map, and GB for ImageNet's images."""
    folder, packed = out / "pictures/labels", scratch / "labels.pack"
    worker = ROOT / "target/release/worker"
    subprocess.run([worker, "pack", folder, packed], check=True, capture_output=True)
    files = [path.stat() for path in folder.glob("*/*.pt")]
    maps = len(files)
    kept = {
        "float16 .pt files": sum(file.st_size for file in files),
        "the same, in blocks of the disk": sum(file.st_blocks * 512 for file in files),
        "packed": packed.stat().st_size,
    }
    return [
        {"kept as": name, "bytes/map": size / maps, "GB for ImageNet": size / maps * IMAGENET / 1e9}
        for name, size in kept.items()
    ]


PARTS = {"threads": threads, "workers": workers, "index": index, "labels": labels}


def table(part, found):
    def cell(value):
        return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

    shown = [[cell(value) for value in row.values()] for row in found]
    lines = [list(found[0]), ["---"] * len(found[0]), *shown]
    return f"{PARTS[part].__doc__}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="these parts alone")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures.make(args.out / "pictures", 240)
    found = {}
    for part in args.only:
        with tempfile.TemporaryDirectory(dir=args.out) as scratch:
            found[part] = PARTS[part](args.out, pathlib.Path(scratch))
        print(table(part, found[part]), flush=True)
    (args.out / "growth.md").write_text("\n".join(table(*part) for part in found.items()))
    (args.out / "growth.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
