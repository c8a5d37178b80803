# The training job. Build from the root of the repository:
#   docker build -f deploy/training.Dockerfile -t lenserve-train:cpu .
#   docker run -v $PWD/repository:/models -v $PWD/runs:/runs lenserve-train:cpu run lenet5-digits
# To publish to s3://, add --build-arg EXTRAS=train,s3
# For NVIDIA GPUs; run it with --gpus all:
#   docker build -f deploy/training.Dockerfile --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 \
#     -t lenserve-train:cuda .
# BASE is any image with Python 3.11 or newer, its venv and its headers, such as a mirror of this one.
ARG BASE=python:3.12-slim

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=train
# training.compile=true compiles at run time: C++ for a CPU, and C (by Triton) for a GPU. g++ depends on gcc.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends g++ libc6-dev && \
    rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 lenserve && \
    useradd --uid 10001 --gid 10001 --no-log-init --create-home lenserve && \
    install --directory --owner=10001 --group=10001 /models /runs
WORKDIR /src
# Dependencies first, for an empty package: a change of the source then leaves their layer as it is.
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN mkdir serving training && echo '__version__ = "0"' > serving/__init__.py && touch training/__init__.py && \
    python3 -m venv /opt/lenserve && \
    /opt/lenserve/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt ".[${EXTRAS}]" && \
    /opt/lenserve/bin/pip uninstall --yes lenserve && \
    rm -rf build lenserve.egg-info serving training
COPY serving serving
COPY training training
RUN /opt/lenserve/bin/pip install --no-cache-dir --no-deps .
USER 10001:10001
WORKDIR /runs
# Everything that is written at run time goes to /runs, /models or /tmp: the rest may be read-only. What is compiled goes
# to /runs, since Docker mounts a tmpfs without the right to execute.
ENV PATH=/opt/lenserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCH_HOME=/runs/.torch \
    TORCHINDUCTOR_CACHE_DIR=/runs/.torch/inductor \
    TRITON_CACHE_DIR=/runs/.torch/triton \
    LENSERVE_REPOSITORY_CACHE=/runs/.lenserve \
    LENSERVE_REPOSITORY=/models
VOLUME /models /runs
ENTRYPOINT ["lenserve-train"]
CMD ["recipes"]
