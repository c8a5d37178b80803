# The server, without torch and compilers, as an unprivileged user. Build from the root of the repository:
#   docker build -f deploy/serving.Dockerfile -t lenserve .
# For an NVIDIA GPU add CUDA and cuDNN as pip packages, and run with --gpus all:
#   docker build -f deploy/serving.Dockerfile --build-arg EXTRAS=cuda -t lenserve:cuda .
# For a smaller image that runs on CPUs only:
#   docker build -f deploy/serving.Dockerfile --build-arg EXTRAS=serve-cpu -t lenserve:cpu .
FROM python:3.12-slim AS build
ARG EXTRAS=serve
WORKDIR /src
RUN python -m venv /opt/lenserve
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY serving serving
COPY training training
RUN /opt/lenserve/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home lenserve
COPY --from=build /opt/lenserve /opt/lenserve
USER lenserve
ENV PATH=/opt/lenserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LENSERVE_HOST=0.0.0.0 \
    LENSERVE_REPOSITORY=/models \
    LENSERVE_LAME_DUCK_S=5 \
    LENSERVE_LOG_JSON=true
VOLUME /models
EXPOSE 8001 8002
# Probe of Docker; in Kubernetes, use a readinessProbe with the same address.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8002/readyz', timeout=2)"]
ENTRYPOINT ["lenserve"]
CMD ["serve"]
