"""Label maps to the targets of random crops, as the reference does it: torch.load, a dense map of all classes, roi_align.
Prints how many, and in how many seconds.
"""

import argparse
import json
import pathlib
import time

import torch
import torchvision

CLASSES, SIZE = 1000, (500, 375)


def target(path, boxes):
    label = torch.load(path, weights_only=True).float()
    dense = torch.zeros(CLASSES, 15, 15)
    dense.scatter_(0, label[1].long(), label[0])
    pooled = torchvision.ops.roi_align(dense.unsqueeze(0), boxes, output_size=(1, 1), spatial_scale=1.0, aligned=True)
    return torch.softmax(pooled.flatten(), 0)


parser = argparse.ArgumentParser()
parser.add_argument("--maps", required=True)
parser.add_argument("--images", type=int, required=True)
args = parser.parse_args()
torch.set_num_threads(1)
torch.manual_seed(0)
paths = sorted(pathlib.Path(args.maps).glob("*/*.pt"))
picture = torch.empty(3, SIZE[1], SIZE[0])
boxes = []
for _ in range(args.images):
    top, left, height, width = torchvision.transforms.RandomResizedCrop.get_params(picture, (0.08, 1), (3 / 4, 4 / 3))
    corners = [left / SIZE[0], top / SIZE[1], (left + width) / SIZE[0], (top + height) / SIZE[1]]
    boxes.append(torch.tensor([[0, *(15 * corner for corner in corners)]]))
for path in paths:
    target(path, boxes[0])
began = time.perf_counter()
for number in range(args.images):
    target(paths[number % len(paths)], boxes[number])
print(json.dumps({"images": args.images, "seconds": time.perf_counter() - began}))
