# Every target first makes sure of libtorch and the build tools, which takes a second once they are there.
# Everything is built in the release profile, and for the whole workspace, whose dependencies then have the same features
# every time: so libtorch's bindings are compiled once.

CARGO ?= cargo
# Passed to every cargo command; CI says --locked.
CARGOFLAGS ?=
# Set, it has parity compare one network of each family.
PARITY_QUICK ?=
# Arguments of tests/bench/bench.py.
BENCH ?=
# How long fuzz stays with each target.
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help setup build test lint parity bench bench-quick bench-growth gpu-check recovery fuzz watch-test slurm-test k8s-test \
	image-test store-test man demo experiment clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Fetch libtorch and check the build tools
	@deploy/local/setup.sh

build: setup ## Build target/release/coordinator and target/release/worker
	$(CARGO) build --release --workspace --bins $(CARGOFLAGS)

test: build ## Run every test; the end-to-end ones run the two binaries
	$(CARGO) test --release --workspace $(CARGOFLAGS)

lint: setup ## Check formatting, clippy and the documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets $(CARGOFLAGS) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps $(CARGOFLAGS)

parity: setup ## Compare with PyTorch, torchvision, timm and adamp, installed into .parity/ (or PARITY_PYTHON=...)
	CARGO="$(CARGO)" CARGOFLAGS="$(CARGOFLAGS)" PARITY_QUICK="$(PARITY_QUICK)" tests/parity/run.sh

bench: setup ## Time this project beside its peers, with their packages in .bench/, in about 40 minutes; BENCH="--only labels" less
	CARGO="$(CARGO)" CARGOFLAGS="$(CARGOFLAGS)" tests/bench/run.sh $(BENCH)

bench-quick: setup ## The same with fewer rows and turns, in under five minutes
	CARGO="$(CARGO)" CARGOFLAGS="$(CARGOFLAGS)" tests/bench/run.sh --quick $(BENCH)

bench-growth: setup ## Measure how its figures grow with threads, workers, images and label maps, in about ten minutes
	CARGO="$(CARGO)" CARGOFLAGS="$(CARGOFLAGS)" tests/bench/run.sh --growth $(BENCH)

gpu-check: setup ## Check what needs an NVIDIA GPU, and say what could not run; without Rust: tests/gpu/check.sh
	$(CARGO) build --release --workspace --bins --example gpu_check $(CARGOFLAGS)
	tests/gpu/check.sh

recovery: build ## Measure what the loss of a worker costs, beside torchrun, with the packages of parity
	$${PARITY_PYTHON:-.parity/bin/python} tests/recovery/recovery.py

fuzz: setup ## Fuzz what reads files, peers and options, FUZZ_SECONDS (60) each; the first build takes minutes
	tests/fuzz/run.sh $(FUZZ_SECONDS)

watch-test: setup ## Test dashboard, /metrics and event files with Chromium, Prometheus and TensorBoard
	CARGO="$(CARGO)" CARGOFLAGS="$(CARGOFLAGS)" tests/watch.sh

man: build ## Write the manual pages of both programs to target/man
	target/release/coordinator man target/man
	target/release/worker man target/man

slurm-test: build ## Run jobs on a real SLURM of two nodes on this machine, as root; installs Debian's packages of it
	$(CARGO) test --release --workspace $(CARGOFLAGS) --test slurm \
	    --config "target.'cfg(all())'.runner = '$(CURDIR)/tests/slurm/cluster.sh'" -- --ignored --test-threads=1

k8s-test: build ## Hold the Kubernetes objects to their schemas and run their pods as processes, as root
	tests/k8s/run.sh

image-test: build ## Build the images and train in containers, as root; installs Debian's packages of podman
	tests/containers/run.sh

store-test: build ## Train onto a real object store of its own, which is built into .store/ once
	tests/store/run.sh

demo: build ## Make a small data set and train on it with two local workers
	target/release/worker synth demo/data
	rm -rf demo/run
	target/release/coordinator --workers 2 --local --config configs/demo.yaml --run-dir demo/run

experiment: build ## Compare ReLabel with its baselines, in 20 minutes on two cores; EXPERIMENT=--fresh starts over, --why and --resize ask more
	python3 tests/experiment/experiment.py $(EXPERIMENT)

clean: ## Remove what was built and the data and runs of demo and experiment; keep libtorch
	$(CARGO) clean
	rm -rf demo experiment bench
