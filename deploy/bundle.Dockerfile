# A published version as an OCI image, for KServe's oci://. The context is a repository, or a folder of one:
#   docker build -f deploy/bundle.Dockerfile --build-arg SOURCE=lenet5-digits/1 -t lenet5-digits:1 repository
# KServe's sidecar needs a shell in the image; native image volumes (Kubernetes 1.33) need nothing: --build-arg BASE=scratch
ARG BASE=busybox:1.37

FROM ${BASE}
ARG SOURCE
COPY ${SOURCE} /models
USER 10001:10001
