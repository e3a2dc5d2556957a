"""`python -m mlflow_domino` is `mlflow-domino`."""

import sys

from mlflow_domino.cli import main

sys.exit(main())
