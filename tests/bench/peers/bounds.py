"""What this machine does at most of what a row is made of. Prints the rate."""

import argparse
import json
import statistics
import time

import numpy
import torch
import torch.multiprocessing as mp


def timed(work, repeats):
    """Seconds, by the median, after a first time."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matrices(args):
    """Multiplications and additions a second of a large matrix product, by oneDNN."""
    torch.set_num_threads(args.threads)
    kind, side = torch.bfloat16 if args.precision == "bf16" else torch.float32, 2048
    a, b = torch.randn(2, side, side).to(kind)
    return 2 * side**3 / timed(lambda: torch.nn.functional.linear(a, b), 10)


def copies(rank, args, rates):
    """GB/s at which each of some processes at once copies 102 MB from one place to another."""
    there, here = numpy.zeros(102_000_000 // 4, numpy.float32), numpy.ones(102_000_000 // 4, numpy.float32)
    rates[rank] = 0.102 / timed(lambda: numpy.copyto(there, here), 20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["matrices", "copies"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--ranks", type=int, default=1)
    args = parser.parse_args()
    if args.what == "matrices":
        rate = matrices(args)
    else:
        rates = mp.get_context("spawn").Array("d", args.ranks)
        mp.spawn(copies, (args, rates), nprocs=args.ranks)
        rate = statistics.mean(rates)
    print(json.dumps({"rate": rate}))
