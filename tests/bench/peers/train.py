"""A training script as PyTorch's documentation has it: one process, or several with DistributedDataParallel over Gloo; on one
batch of random pictures, which costs nothing to load, or on JPEG files and label maps, as the reference reads them. Prints images a second (by the median step), seconds from the start of the program to
the end of the first step, the most memory that a process had, and how long torch.save holds the loop up.
"""

import time

STARTED = time.time()

import argparse
import itertools
import json
import os
import resource
import statistics
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision

import pipeline


def of_memory(args):
    share = args.batch // args.workers
    images = torch.randn(share, 3, args.size, args.size).to(memory_format=torch.channels_last)
    return itertools.repeat((images, torch.softmax(torch.randn(share, args.classes), 1)))


def of_files(args):
    """A process of a DataLoader for each worker."""
    loader = torch.utils.data.DataLoader(
        pipeline.Pictures(args.files, args.size), args.batch // args.workers, shuffle=True, drop_last=True, num_workers=1,
        persistent_workers=True,
    )
    batches = (batch for _ in itertools.count() for batch in loader)
    return ((images.to(memory_format=torch.channels_last), targets) for images, targets in batches)


def train(rank, args, started):
    torch.set_num_threads(args.threads)
    torch.manual_seed(rank)
    model = torchvision.models.get_model(args.arch, num_classes=args.classes).to(memory_format=torch.channels_last)
    if args.workers > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29544", "GLOO_SOCKET_IFNAME": "lo"}
        dist.init_process_group("gloo", rank=rank, world_size=args.workers)
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    forward = torch.compile(model) if args.compile else model
    batches = of_files(args) if args.files else of_memory(args)

    def step():
        images, targets = next(batches)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(forward(images), targets)
        loss.backward()
        optimizer.step()

    times = []
    for number in range(args.steps):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
        if number == 0:
            first = time.time() - started
    if rank == 0:
        with tempfile.NamedTemporaryFile() as file:
            began = time.perf_counter()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            saving = time.perf_counter() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rate = args.batch / statistics.median(times[1:] or times)
        print(json.dumps({"rate": rate, "first_step": first, "memory": memory, "saving": saving}), flush=True)
    if args.workers > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="of all workers together")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--files", help="a folder with train/ and labels/, in place of one batch in memory")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    if args.workers == 1:
        train(0, args, STARTED)
    else:
        mp.spawn(train, (args, STARTED), nprocs=args.workers)
