# A worker with its libtorch. From the root of the checkout:
#   docker build --file deploy/containers/worker.Dockerfile --target cpu  --tag relabel-worker:0.1.0 .
#   docker build --file deploy/containers/worker.Dockerfile --target cuda --tag relabel-worker:0.1.0-cuda .
ARG DEBIAN=debian:bookworm-slim
ARG RUST=rust:1.95-bookworm
# `outside` takes program and libraries out of target/image instead, as tests/containers/run.sh puts them there.
ARG IMAGE_BUILD=inside

# libtorch as deploy/local/setup.sh fetches it: the CPU's libraries, and as much of CUDA's as those are linked against.
FROM ${RUST} AS inside
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake nasm python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY deploy/local deploy/local
RUN deploy/local/setup.sh
COPY . .
RUN cargo build --release --locked --package relabel-worker --bin worker \
    && install -D --strip target/release/worker /out/worker \
    && python3 deploy/containers/sbom.py relabel-worker >/out/worker.cdx.json \
    && mkdir -p /out/torch \
    && cp -rL .libtorch/torch/lib /out/torch/lib \
    && cp -rL .libtorch/nvidia /out/nvidia

FROM scratch AS outside
COPY target/image/worker /out

FROM ${IMAGE_BUILD} AS build

FROM ${DEBIAN} AS program
LABEL org.opencontainers.image.title="relabel-worker" \
      org.opencontainers.image.description="One rank of a training run with ReLabel targets" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/worker /opt/relabel/bin/worker
COPY --from=build /out/worker.cdx.json /usr/share/sbom/worker.cdx.json
COPY LICENSE /usr/share/doc/relabel/LICENSE
# The worker looks for libtorch in ../lib, and libtorch for CUDA's libraries beside itself.
RUN ln -s torch/lib /opt/relabel/lib \
    && ln -s /opt/relabel/bin/worker /usr/local/bin/worker \
    && install --directory --owner=10001 --group=10001 /runs
USER 10001:10001
WORKDIR /runs
# SIGTERM has the worker leave at its next step.
STOPSIGNAL SIGTERM
# No health check: the coordinator hears every worker's heartbeat, and drops one that falls silent.
ENTRYPOINT ["worker"]
CMD ["--help"]

FROM program AS cpu
COPY --from=build /out/torch /opt/relabel/torch
COPY --from=build /out/nvidia /opt/relabel/nvidia

# The whole of PyTorch's CUDA libraries, which are loaded when --gpu asks for them. The driver comes from the host.
FROM ${DEBIAN} AS cuda-libraries
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-pip \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m pip install --no-cache-dir --no-compile --target /cuda --python-version 3.12 --only-binary=:all: torch==2.11.0

FROM program AS cuda
COPY --from=cuda-libraries /cuda/torch/lib /opt/relabel/torch/lib
COPY --from=cuda-libraries /cuda/nvidia /opt/relabel/nvidia
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
