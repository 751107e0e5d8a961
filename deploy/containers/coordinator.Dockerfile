# The coordinator: one program on a small Debian. From the root of the checkout:
#   docker build --file deploy/containers/coordinator.Dockerfile --tag relabel-coordinator:0.1.0 .
ARG DEBIAN=debian:bookworm-slim
ARG RUST=rust:1.95-bookworm
# `outside` takes the program out of target/image instead, as tests/containers/run.sh puts it there.
ARG IMAGE_BUILD=inside

FROM ${RUST} AS inside
WORKDIR /src
COPY . .
# Only what the coordinator needs: neither libtorch nor a C++ compiler.
RUN cargo build --release --locked --package coordinator --bin coordinator \
    && install -D --strip target/release/coordinator /out/coordinator \
    && python3 deploy/containers/sbom.py coordinator >/out/coordinator.cdx.json

FROM scratch AS outside
COPY target/image/coordinator /out

FROM ${IMAGE_BUILD} AS build

FROM ${DEBIAN}
LABEL org.opencontainers.image.title="relabel-coordinator" \
      org.opencontainers.image.description="Owns a training run with ReLabel targets" \
      org.opencontainers.image.licenses="Apache-2.0"
# The certificates that object stores are known by.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/coordinator /usr/local/bin/coordinator
COPY --from=build /out/coordinator.cdx.json /usr/share/sbom/coordinator.cdx.json
COPY LICENSE /usr/share/doc/relabel/LICENSE
RUN install --directory --owner=10001 --group=10001 /runs
USER 10001:10001
WORKDIR /runs
VOLUME /runs
EXPOSE 4747
# SIGTERM is a checkpoint and a clean end.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=20s --timeout=5s --start-period=30s --retries=6 \
    CMD ["bash", "-c", ": <>/dev/tcp/127.0.0.1/4747"]
ENTRYPOINT ["coordinator"]
CMD ["--help"]
