#!/bin/sh
# Fetch the foreign clients that tests/system/test_triton_clients.py and test_node_client.py talk to us with, into
# .peers/ (git-ignored):
#
#   .peers/triton          a virtual environment with NVIDIA's tritonclient, which needs protobuf < 7: never in ours
#   .peers/perf_analyzer   NVIDIA's load generator, with the two libraries that it wants beside it
#   .peers/node            gRPC for Node, where node and npm are installed
#
# Uses pip, npm and apt-get download, needs no root, and is quick when all is there. What cannot be had is named, and its
# tests skip: the exit code is 0, so that `make test` also works without a network.
#
#   PYTHON=python3.12 tests/system/fetch_peers.sh

set -u
cd "$(dirname "$0")/../.." || exit 1

PYTHON=${PYTHON:-python3}
PEERS=$PWD/.peers
TRITON_CLIENT=2.73.0
PERF_ANALYZER=2.41.0   # the last tritonclient wheel with the binary inside; perf_analyzer's own wheel on PyPI is empty
GRPC_JS=1.14.7
PROTO_LOADER=0.8.1
CUDA_RUNTIME=12.9.79   # libcudart.so.12, which the binary is linked with; no GPU is used

fetch_triton() {
    [ -e "$PEERS/triton/$TRITON_CLIENT.done" ] && return
    rm -rf "$PEERS/triton"
    "$PYTHON" -m venv "$PEERS/triton" &&
        "$PEERS/triton/bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 \
            "tritonclient[grpc]==$TRITON_CLIENT" &&
        touch "$PEERS/triton/$TRITON_CLIENT.done"
}

fetch_perf_analyzer() {
    [ -e "$PEERS/perf_analyzer/$PERF_ANALYZER.done" ] && return
    target=$PEERS/perf_analyzer work=$PEERS/perf_analyzer.part
    rm -rf "$target" "$work"
    mkdir -p "$target" "$work" &&
        "$PYTHON" -m pip download --quiet --disable-pip-version-check --retries 1 --no-deps --only-binary=:all: \
            --dest "$work" --platform manylinux1_x86_64 --platform manylinux2014_x86_64 \
            "tritonclient==$PERF_ANALYZER" "nvidia-cuda-runtime-cu12==$CUDA_RUNTIME" &&
        (cd "$work" && for wheel in *.whl; do "$PYTHON" -m zipfile -e "$wheel" wheels || exit 1; done) &&
        fetch_libb64 "$work" &&
        find "$work" \( -name perf_analyzer -o -name libcudart.so.12 -o -name 'libb64.so.0d' \) -type f \
            -exec cp {} "$target" \; &&
        mv "$target/perf_analyzer" "$target/perf_analyzer.bin" &&
        chmod +x "$target/perf_analyzer.bin" &&
        cat >"$target/perf_analyzer" <<'WRAPPER' &&
#!/bin/sh
here=$(dirname "$0")
LD_LIBRARY_PATH=$here${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$here/perf_analyzer.bin" "$@"
WRAPPER
        chmod +x "$target/perf_analyzer" &&
        "$target/perf_analyzer" --version &&
        touch "$target/$PERF_ANALYZER.done"
    fetched=$?
    rm -rf "$work"
    return "$fetched"
}

fetch_node() {
    [ -e "$PEERS/node/$GRPC_JS.done" ] && return
    command -v node >/dev/null && command -v npm >/dev/null || { echo "no node or no npm"; return 1; }
    rm -rf "$PEERS/node"
    mkdir -p "$PEERS/node" &&
        echo '{"private": true}' >"$PEERS/node/package.json" &&
        npm install --silent --fetch-retries=1 --fetch-timeout=20000 --no-audit --no-fund --ignore-scripts --prefix "$PEERS/node" \
            "@grpc/grpc-js@$GRPC_JS" "@grpc/proto-loader@$PROTO_LOADER" &&
        touch "$PEERS/node/$GRPC_JS.done"
}

# Debian's own; where the machine has no package lists yet, private ones are fetched, which needs no root.
fetch_libb64() {
    ldconfig -p 2>/dev/null | grep -q 'libb64\.so\.0d' && return
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
    (
        cd "$1" && {
            apt-get --quiet --quiet download libb64-0d || {
                set -- -o "Dir::State::lists=$1/lists" -o "Dir::Cache=$1/cache" -o APT::Sandbox::User=
                apt-get --quiet --quiet "$@" update && apt-get --quiet --quiet "$@" download libb64-0d
            }
        } && dpkg -x libb64-0d_*.deb debian
    )
}

missing=
mkdir -p "$PEERS"
for peer in triton perf_analyzer node; do
    if ! problems=$("fetch_$peer" 2>&1); then
        missing="$missing $peer"
        printf '%s\n' "$problems" | tail -n 5 >&2
    fi
done
if [ -n "$missing" ]; then
    echo "fetch_peers: missing, their tests will skip:$missing" >&2
else
    echo "fetch_peers: .peers/triton ($TRITON_CLIENT), perf_analyzer ($PERF_ANALYZER) and node ($GRPC_JS) are there"
fi
exit 0
