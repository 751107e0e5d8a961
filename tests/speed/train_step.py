"""Times training steps of the worker beside PyTorch's, on the CPU, in turns in the same run, and compares the medians.

    python tests/speed/train_step.py --program target/release/examples/parity

ResNet-50 at 224 pixels in batches of 16, channels_last, SGD with momentum, images in memory, in fp32 and in bf16 (torch.autocast,
eager). Each takes a few steps and then waits for the other, so that what else the machine does meets both. A line a precision:
seconds a step and what part of PyTorch's rate the worker's is.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch
import torchvision

STEPS_A_TURN = 2


class Worker:
    """The worker's learner in a process of its own."""

    def __init__(self, options, precision):
        command = [options.program, "step-times", "--arch", options.arch, "--batch", options.batch, "--size", options.size]
        command += ["--threads", options.threads, "--precision", precision]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def steps(self, count):
        """Seconds of each of some steps."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the worker's process has ended"
        return [float(seconds) for seconds in line.split()]

    def end(self):
        """Waits for it to end."""
        self.process.stdin.close()
        assert self.process.wait() == 0


class PyTorch:
    """The same steps in eager PyTorch."""

    def __init__(self, options, precision):
        self.model = getattr(torchvision.models, options.arch)().to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-5, fused=True)
        images = torch.randn(options.batch, 3, options.size, options.size)
        self.images = images.to(memory_format=torch.channels_last)
        self.targets = torch.nn.functional.one_hot(torch.arange(options.batch) * 37 % 1000, 1000).float()
        self.bf16 = precision == "bf16"

    def steps(self, count):
        """Seconds of each of some steps."""
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
                loss = torch.nn.functional.cross_entropy(self.model(self.images), self.targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
            seconds.append(time.perf_counter() - began)
        return seconds

    def end(self):
        """Nothing runs on."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the built example `parity`")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for precision in ["fp32", "bf16"]:
        contenders = {"the worker": Worker(options, precision), "PyTorch": PyTorch(options, precision)}
        seconds = {name: [] for name in contenders}
        for contender in contenders.values():
            contender.steps(2)
        for _ in range(options.turns):
            for name, contender in contenders.items():
                seconds[name] += contender.steps(STEPS_A_TURN)
        for contender in contenders.values():
            contender.end()
        ours, theirs = (statistics.median(seconds[name]) for name in contenders)
        print(
            f"{options.arch}, {options.size} px, batch {options.batch}, {options.threads} threads, {precision}: "
            f"{ours:.3f} s a step, PyTorch {theirs:.3f} s: {theirs / ours:.2f} times its rate",
            flush=True,
        )


if __name__ == "__main__":
    main()
