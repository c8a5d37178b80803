#!/usr/bin/env bash
# Proves and measures Lenserve on a GPU; --help lists the options. Packages come from .venv where there is one, else
# from PYTHONPATH and the python3 on the path.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=passive
exec "$PYTHON" -m tests.gpu "$@"
