# The training job. Build from the root of the repository:
#   docker build -f deploy/training.Dockerfile -t lenserve-train .
#   docker run -v $PWD/repository:/models -v $PWD/runs:/runs lenserve-train run lenet5-digits
FROM python:3.12-slim
# A CPU build by default; for an NVIDIA GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# training.compile=true compiles at run time: C++ for a CPU, and C (by Triton) for a GPU. g++ depends on gcc.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY serving serving
COPY training training
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt ".[train]"
RUN useradd --uid 10001 --create-home lenserve && install -d -o lenserve /models /runs
USER lenserve
WORKDIR /runs
ENV PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    LENSERVE_REPOSITORY=/models
VOLUME /models /runs
ENTRYPOINT ["lenserve-train"]
CMD ["recipes"]
