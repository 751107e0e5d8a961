"""The peer of recovery.py: a training script for `torchrun`, as its documentation has it. ResNet-18 with
DistributedDataParallel over Gloo on random pictures; every --every steps rank 0 saves a checkpoint, and whoever is started
again goes on from it. Rank 0 writes a line a step to --log: its wall time and its number.
"""

import argparse
import datetime
import os
import time

import torch
import torch.distributed as dist
import torchvision


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="of all ranks together")
    parser.add_argument("--size", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # The default of half an hour is how long a group that cannot be formed would be waited for.
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=10))
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torchvision.models.resnet18(num_classes=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    checkpoint, first = os.path.join(args.folder, "checkpoint.pt"), 0
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    with open(os.path.join(args.folder, f"pid-{rank}"), "w") as file:
        file.write(str(os.getpid()))
    images = torch.randn(args.batch // world, 3, args.size, args.size)
    labels = torch.randint(0, 4, (args.batch // world,))
    for step in range(first, args.steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if rank == 0:
            with open(os.path.join(args.folder, "steps"), "a") as file:
                file.write(f"{time.time()} {step}\n")
            if (step + 1) % args.every == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                torch.save(state, checkpoint + ".part")
                os.replace(checkpoint + ".part", checkpoint)


main()
