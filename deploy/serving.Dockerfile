# The server, without torch and compilers, for CPUs. Build from the root of the repository:
#   docker build -f deploy/serving.Dockerfile -t lenserve:cpu .
# For NVIDIA GPUs, with CUDA and cuDNN as pip packages; run it with --gpus all:
#   docker build -f deploy/serving.Dockerfile --build-arg EXTRAS=cuda -t lenserve:cuda .
# To serve a repository in s3://, add s3 to EXTRAS: serve-cpu,s3 or cuda,s3.
# BASE is any image with Python 3.11 or newer and its venv, such as a mirror of this one.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ARG EXTRAS=serve-cpu
WORKDIR /src
# Dependencies first, for an empty package: a change of the source then leaves their layer as it is.
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN mkdir serving training && echo '__version__ = "0"' > serving/__init__.py && touch training/__init__.py && \
    python3 -m venv --without-pip /opt/lenserve && \
    python3 -m venv /opt/build && \
    /opt/build/bin/pip --python /opt/lenserve/bin/python install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" && \
    /opt/build/bin/pip --python /opt/lenserve/bin/python uninstall --yes lenserve && \
    rm -rf build lenserve.egg-info serving training
COPY serving serving
COPY training training
# Tests and C sources of the dependencies go, and ONNX Runtime's tools that make models: 36 MB that nothing imports.
RUN /opt/build/bin/pip --python /opt/lenserve/bin/python install --no-cache-dir --no-deps . && \
    find /opt/lenserve -depth \( -name tests -o -name '*.c' -o -name '*.pyx' \
        -o -path '*/onnxruntime/transformers' -o -path '*/onnxruntime/quantization' -o -path '*/onnxruntime/tools' \) \
        -exec rm -rf {} +

FROM ${BASE}
# Numbers, so that Kubernetes can tell that this is not root. Training writes as the same user. An empty volume takes
# over the owner of /models from the first container that uses it, so both images have it.
RUN groupadd --gid 10001 lenserve && \
    useradd --uid 10001 --gid 10001 --no-log-init --create-home lenserve && \
    install --directory --owner=10001 --group=10001 /models
COPY --from=build /opt/lenserve /opt/lenserve
COPY deploy/serve-mounted.sh /usr/local/bin/serve-mounted
USER 10001:10001
ENV PATH=/opt/lenserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LENSERVE_HOST=0.0.0.0 \
    LENSERVE_REPOSITORY=/models \
    LENSERVE_LAME_DUCK_S=5 \
    LENSERVE_LOG_JSON=true
VOLUME /models
EXPOSE 8001 8002
# Set another port with the variable LENSERVE_HTTP_PORT: the probe follows it. Kubernetes ignores this probe.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-ISc", "import os, urllib.request as u; \
u.urlopen('http://127.0.0.1:' + os.environ.get('LENSERVE_HTTP_PORT', '8002') + '/readyz', timeout=2)"]
ENTRYPOINT ["lenserve"]
CMD ["serve"]
