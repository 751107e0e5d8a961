"""Gloo's all-reduce between processes of this machine. Prints the bus bandwidth in GB/s: what each rank sends, 2 (n-1)/n of
the buffer, over the median of the times.
"""

import argparse
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def rank(number, ranks, megabytes, rounds, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=ranks)
    gradients = torch.ones(megabytes * 1_000_000 // 4)
    times = []
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(gradients)
        times.append(time.perf_counter() - began)
        gradients.fill_(1.0)
    if number == 0:
        sent = 2 * (ranks - 1) / ranks * megabytes * 1e-3
        print(json.dumps({"rate": sent / statistics.median(times)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--megabytes", type=int, default=102)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--port", type=int, default=29533)
    args = parser.parse_args()
    mp.spawn(rank, (args.ranks, args.megabytes, args.rounds, args.port), nprocs=args.ranks)
