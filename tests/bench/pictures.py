"""Makes the pictures that are timed: JPEGs like ImageNet's, 500x375 at qualities 90 to 95, cut out of photographs that the
scikit-image package brings along; and label maps for them, as the reference writes them.
"""

import pathlib
import random
import sys

import numpy
import skimage.data
import torch
from PIL import Image

SIZE = (500, 375)
CLASSES, FOLDERS = 1000, 10
PHOTOGRAPHS = ["astronaut", "chelsea", "coffee", "retina", "rocket", "stereo_motorcycle"]


def photographs():
    for name in PHOTOGRAPHS:
        made = getattr(skimage.data, name)()
        yield Image.fromarray(made[0] if isinstance(made, tuple) else made).convert("RGB")


def window(photograph, draw):
    """Half of its area or more, anywhere, mirrored or not, in the shape of SIZE."""
    width, height = photograph.size
    scale = draw.uniform(0.7, 1) * min(width / SIZE[0], height / SIZE[1])
    wide, high = SIZE[0] * scale, SIZE[1] * scale
    left, top = draw.uniform(0, width - wide), draw.uniform(0, height - high)
    cut = photograph.resize(SIZE, Image.Resampling.LANCZOS, (left, top, left + wide, top + high))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else cut


def label_map(draw):
    """[2, 5, 15, 15]: logits of the five best in each cell and their class ids, which differ, as a real one's do."""
    logits = numpy.sort(draw.normal(4, 3, (5, 15, 15)).astype(numpy.float16), axis=0)[::-1]
    ids = draw.random((CLASSES, 15, 15)).argsort(axis=0)[:5].astype(numpy.float16)
    return torch.from_numpy(numpy.stack([logits, ids]))


def make(folder, pictures):
    """`folder`/train and /val/<class>/<picture>.jpg, and `folder`/labels/<class>/<picture>.pt of train."""
    folder = pathlib.Path(folder)
    done = folder / f"done-{pictures}"
    if done.exists():
        return
    draw, numbers = random.Random(7), numpy.random.default_rng(7)
    sources = list(photographs())
    for part, count in (("train", pictures), ("val", 2 * FOLDERS)):
        for number in range(count):
            name = f"class{number % FOLDERS:02}"
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            cut = window(sources[number % len(sources)], draw)
            cut.save(place / f"{number:05}.jpg", quality=draw.randint(90, 95))
            if part == "train":
                (folder / "labels" / name).mkdir(parents=True, exist_ok=True)
                torch.save(label_map(numbers), folder / "labels" / name / f"{number:05}.pt")
    done.touch()


if __name__ == "__main__":
    make(sys.argv[1], int(sys.argv[2]))
