"""What uWSGI runs as its mule."""

import os

from _mlflow_domino_harness.watchdog import run

run(os.getppid())
