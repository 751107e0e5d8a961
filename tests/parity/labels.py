"""Compares `worker inspect label-map` with torch.save'd maps pooled by torchvision, the way that the reference does it.

    python tests/parity/labels.py --worker target/release/worker [--maps 5]

Needs torch and torchvision. Exits with 1 where a target differs by 1e-5 or more.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision

TOLERANCE = 1e-5
CROPS = 40


def label_map(generator, k, height, width, classes, dtype):
    """A map [2, k, height, width] of random logits and distinct class ids."""
    logits = torch.randn(k, height, width, generator=generator) * 4 + 5
    ids = torch.rand(height, width, classes, generator=generator).argsort(-1)[..., :k]
    return torch.stack([logits, ids.permute(2, 0, 1).float()]).to(dtype)


def random_crops(generator):
    """Boxes (x1, y1, x2, y2) in [0, 1], in float32: tiny, wide, tall, the whole image, and cell-aligned ones."""
    a, b = torch.rand(CROPS, 2, generator=generator), torch.rand(CROPS, 2, generator=generator)
    crops = torch.cat([torch.minimum(a, b), torch.maximum(a, b)], 1)
    crops[0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    crops[1] = torch.tensor([0.5, 0.5, 0.5001, 0.5001])
    crops[2] = torch.tensor([0.99, 0.0, 1.0, 1.0])
    crops[3] = torch.tensor([0.0, 0.0, 1.0, 0.01])
    for i in range(4, 12):
        cells = torch.randint(0, 15, (4,), generator=generator)
        low, high = torch.minimum(cells[:2], cells[2:]), torch.maximum(cells[:2], cells[2:]) + 1
        crops[i] = torch.cat([low, high]) / 15
    return crops[(crops[:, 2:] > crops[:, :2]).all(1)]


def reference_targets(stored, crops, classes, axes):
    """Dense RoIAlign and softmax in float32, [crops, classes]."""
    logits, ids = stored[0].float(), stored[1].long()
    _, height, width = logits.shape
    dense = torch.zeros(1, classes, height, width).scatter_(1, ids[None], logits[None])
    boxes = crops if axes == "hw" else crops[:, [1, 0, 3, 2]]
    boxes = boxes * torch.tensor([width, height, width, height], dtype=torch.float32) - 0.5
    boxes = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    return torchvision.ops.roi_align(dense, boxes, output_size=(1, 1)).flatten(1).softmax(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", default="target/release/worker")
    parser.add_argument("--program", help="not needed here")
    parser.add_argument("--maps", type=int, default=5, help="maps of each kind")
    options = parser.parse_args()
    worker, count = options.worker, options.maps
    generator = torch.Generator().manual_seed(2021)
    largest, pooled, maps = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path, crop_file = Path(folder) / "map.pt", Path(folder) / "crops.json"
        for k, height, width, classes in [(5, 15, 15, 1000), (5, 15, 15, 10), (3, 7, 12, 100), (8, 1, 4, 50)]:
            for zipped in (True, False):
                for dtype in (torch.float32, torch.float16, torch.float64):
                    for _ in range(count):
                        stored = label_map(generator, k, height, width, classes, dtype)
                        if maps % 2:  # every other one with strides that are not row-major
                            stored = stored.transpose(2, 3).contiguous().transpose(2, 3)
                        torch.save(stored, path, _use_new_zipfile_serialization=zipped)
                        crops = random_crops(generator)
                        crop_file.write_text(json.dumps(crops.tolist()))
                        command = [worker, "inspect", "label-map", path, "--crops", crop_file]
                        command += ["--classes", str(classes), "--json"]
                        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                        assert report["shape"] == list(stored.shape) and report["format"] == ("zip" if zipped else "legacy")
                        for axes in ("hw", "reference"):
                            ours = torch.tensor([c["target"] for c in report["crops"] if c["axes"] == axes])
                            wanted = reference_targets(stored, crops, classes, axes)
                            largest = max(largest, (ours - wanted).abs().max().item())
                            pooled += len(crops)
                        maps += 1
    print(f"label maps: {maps} maps, {pooled} pooled crops, largest difference {largest:.2e} (allowed {TOLERANCE:.0e})")
    sys.exit(largest >= TOLERANCE)


if __name__ == "__main__":
    main()
