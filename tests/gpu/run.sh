#!/usr/bin/env bash
# Tests and measures Lenserve on a GPU; --help lists the options. Packages come from .venv where there is one, else
# from PYTHONPATH and the python3 on the path.
set -euo pipefail
export LENSERVE_GPU_CALLED_IN=$PWD  # relative paths of the command line are meant from there
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=passive
exec "$PYTHON" -m tests.gpu "$@"
