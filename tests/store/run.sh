#!/usr/bin/env bash
# Trains onto a real object store: a server of its own that speaks S3, s3s-fs, which cargo builds into .store/ once.
# `make store-test`, after `make build`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

version=0.14.1
if [ "$(cat .store/version 2>/dev/null)" != "$version" ]; then
    # Built to be there soon, not to be fast.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_TARGET_DIR=.store/target "${CARGO:-cargo}" install --quiet --locked --root .store --features binary \
        "s3s-fs@$version"
    rm -rf .store/target
    echo "$version" >.store/version
fi
read -ra cargoflags <<<"${CARGOFLAGS:-}"
STORE_SERVER=$PWD/.store/bin/s3s-fs "${CARGO:-cargo}" test --release ${cargoflags[@]+"${cargoflags[@]}"} \
    --workspace --test store -- --ignored --test-threads=1
