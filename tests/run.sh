#!/bin/sh
# Runs the tests, after making all that they need: `sh tests/run.sh [arguments of pytest]`.
set -eu
cd "$(dirname "$0")/.."
. tests/python.sh
environment .venv-tests test
unset MLFLOW_DOMINO_HOME MLFLOW_DOMINO_TOKEN MLFLOW_TRACKING_URI MLFLOW_REGISTRY_URI
PATH="$PWD/$bin:$PATH"
export PATH
if [ $# -eq 0 ]; then
    "$bin/ruff" check .
    "$bin/ruff" format --check .
    "$bin/mypy"
    set -- --numprocesses 3 --dist loadscope
fi
exec "$bin/python" -m pytest "$@"
