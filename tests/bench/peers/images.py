"""JPEG files to augmented training tensors, as the peers do it. Prints how many, and in how many seconds."""

import argparse
import itertools
import json
import pathlib
import time

import torch
from pipeline import MEAN, STD, after_the_crop

BATCH = 32


def torchvision(data, threads, plain):
    """The reference's pipeline. A thread of its own is a process of a DataLoader, but for one, which is this one."""
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(224), after_the_crop(plain)]
    images = datasets.ImageFolder(data, transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=0 if threads == 1 else threads, persistent_workers=threads > 1
    )
    return (batch.shape[0] for _ in itertools.count() for batch, _ in loader)


def dali(data, threads, plain):
    """DALI on the CPU: its random crop decodes only the crop, and color_twist stands for the jitter; lighting it has none."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None, seed=1)
    def pipeline():
        files, _ = fn.readers.file(file_root=data, random_shuffle=True)
        images = fn.decoders.image_random_crop(files, device="cpu", random_area=[0.08, 1], random_aspect_ratio=[0.75, 4 / 3])
        images = fn.resize(images, size=[224, 224], antialias=True)
        if not plain:
            factor = lambda: fn.random.uniform(range=[0.6, 1.4])
            images = fn.color_twist(images, brightness=factor(), contrast=factor(), saturation=factor())
        return fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="HWC",
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
        )

    made = pipeline()
    made.build()
    return (len(made.run()[0]) for _ in itertools.count())


def simplejpeg(data, threads, plain):
    """Decoding the whole picture with libjpeg-turbo, and nothing else: what a pipeline that decodes all is bound by."""
    import simplejpeg

    files = [path.read_bytes() for path in sorted(pathlib.Path(data).glob("*/*.jpg"))]
    return (simplejpeg.decode_jpeg(file) is not None for file in itertools.cycle(files))


parser = argparse.ArgumentParser()
parser.add_argument("peer", choices=["torchvision", "dali", "simplejpeg"])
parser.add_argument("--data", required=True)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--images", type=int, required=True)
parser.add_argument("--plain", action="store_true", help="without jitter and lighting")
args = parser.parse_args()
torch.set_num_threads(1)
batches = globals()[args.peer](args.data, args.threads, args.plain)
next(batches)
done, began = 0, time.perf_counter()
while done < args.images:
    done += next(batches)
print(json.dumps({"images": done, "seconds": time.perf_counter() - began}))
