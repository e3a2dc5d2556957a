"""Time to deploy where the environment is cached: `create_deployment()` beside the model's own import and load time.

python -m tests.benchmarks.deploying [--model iris|trees|network] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time

from tests.benchmarks.measure import scratch
from tests.benchmarks.models import MODELS
from tests.benchmarks.servers import domino

LOAD = "import mlflow.pyfunc, sys; mlflow.pyfunc.load_model(sys.argv[1])"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with scratch() as folder, domino(folder) as ours:
        model = MODELS[options.model](folder)
        controller = ours.controller
        first, _token = controller.create("first", str(model.path), {})  # makes the environment
        assert first.current is not None
        assert first.current.version.artifact is not None
        python = controller.home.environments / first.current.version.artifact.environment / "bin" / "python"
        more = []
        for round_ in range(options.rounds):
            begun = time.monotonic()
            subprocess.run([python, "-W", "ignore", "-c", LOAD, model.path], check=True, capture_output=True)
            loaded = time.monotonic()
            controller.create(f"round-{round_}", str(model.path), {})
            created = time.monotonic()
            controller.delete(f"round-{round_}")
            more.append((created - loaded) - (loaded - begun))
            print(
                f"load {loaded - begun:5.2f} s   create {created - loaded:5.2f} s   more {more[-1]:5.2f} s", flush=True
            )
        print(
            f"create took {statistics.median(more):.2f} s more than import and load, the median of {len(more)} rounds"
        )


if __name__ == "__main__":
    main()
