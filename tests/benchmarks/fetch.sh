#!/bin/sh
# Fetch the peers of `make bench` into .peers/bench/ (git-ignored), each in a virtual environment of its own:
#
#   triton     NVIDIA Triton with its Python backend: the binary lies inside the nvidia-pytriton wheel
#   mosec      mosec, a Rust front over Python workers, HTTP
#   tutorial   grpcio, for the server that a good tutorial would end in
#   h2corn     an HTTP/2 server in Rust, for our own application on it
#   h2load     the load generator of Debian's nghttp2-client, unpacked beside its libraries: needs no root
#
# Quick when all is there. Ends with 1, and says why, when one cannot be had: a table without peers is none.

set -eu
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
PEERS=$PWD/.peers/bench
ONNXRUNTIME=onnxruntime==1.31.1 # what constraints.txt pins for our server
PILLOW=pillow==13.0.0

fetch_environment() { # NAME PYTHON REQUIREMENT...
    name=$1 python=$2
    shift 2
    [ -e "$PEERS/$name/bench.done" ] && return
    echo "fetching $name: $*" >&2
    rm -rf "${PEERS:?}/$name"
    "$python" -m venv "$PEERS/$name"
    "$PEERS/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    touch "$PEERS/$name/bench.done"
}

fetch_h2load() {
    [ -e "$PEERS/h2load/bench.done" ] && return
    echo "fetching h2load" >&2
    rm -rf "$PEERS/h2load"
    mkdir -p "$PEERS/h2load/lists/partial" "$PEERS/h2load/cache/archives/partial"
    (
        cd "$PEERS/h2load"
        # Private package lists, where the machine has none yet: they need no root.
        set -- -o "Dir::State::lists=$PWD/lists" -o "Dir::Cache=$PWD/cache" -o APT::Sandbox::User=
        packages="nghttp2-client libc-ares2 libev4 libjansson4 libjemalloc2 libnghttp2-14"
        # shellcheck disable=SC2086 # a list of names
        apt-get -qq download $packages || { apt-get -qq "$@" update && apt-get -qq "$@" download $packages; }
        for package in *.deb; do dpkg -x "$package" .; done
        rm -rf lists cache ./*.deb
    )
    touch "$PEERS/h2load/bench.done"
}

mkdir -p "$PEERS"
fetch_h2load
# Triton's stub is linked against a Python 3.11 that clashes with newer patch releases: take the system's own.
system_python=/usr/bin/python3
[ -x "$system_python" ] || system_python=$PYTHON
fetch_environment triton "$system_python" nvidia-pytriton==0.7.0 "$ONNXRUNTIME" "$PILLOW"
fetch_environment mosec "$PYTHON" mosec==0.9.8 "$ONNXRUNTIME" "$PILLOW"
fetch_environment tutorial "$PYTHON" grpcio==1.85.1 protobuf==7.36.2 "$ONNXRUNTIME" "$PILLOW"
fetch_environment h2corn "$PYTHON" h2corn==2.0.0
