#!/bin/sh
# Trains and registers a model, deploys it, calls it, updates it under load, and shows what happened.
# Everything is made in a temporary folder and gone afterwards, but for the virtual environment beside this project.
set -eu
cd "$(dirname "$0")/.."
. tests/python.sh
environment .venv-quickstart quickstart
PATH="$PWD/$bin:$PATH"
export PATH
exec "$bin/python" examples/quickstart.py
