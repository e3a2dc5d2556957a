"""Ten minutes at 80 % of the highest rate, workers recycled by count all the while.

    python -m tests.benchmarks.soak [--minutes 10] [--connections 64] [--every 10]

Shown, and failed when it does not hold: no failed request, memory flat, p99 at most twice that of an endpoint which
recycles nobody, at the same rate.
"""

from __future__ import annotations

import argparse
import statistics

from tests.benchmarks.generator import Outcome, load
from tests.benchmarks.measure import scratch
from tests.benchmarks.memory import pss
from tests.benchmarks.models import MODELS
from tests.benchmarks.peers import add_joining, joining
from tests.benchmarks.servers import Side, domino

_WINDOW_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--every", type=float, default=10, help="seconds between two replacements of a worker")
    add_joining(parser)
    options = parser.parse_args()
    with scratch() as folder, domino(folder) as ours:
        model = MODELS[options.model](folder)
        settings = {"workers": options.workers, **joining(options)}
        steady, _ = ours.deploy("steady", model, **settings)
        highest = statistics.median(_window(steady, options.connections, 4.0, 0).rate for _ in range(4))
        rate = 0.8 * highest
        usual = statistics.median(
            _window(steady, options.connections, _WINDOW_S, rate).quantile_ms(0.99) for _ in range(3)
        )
        print(
            f"highest {highest:.0f} requests/s, at {rate:.0f} the p99 is {usual:.2f} ms without recycling", flush=True
        )
        count = max(100, round(rate * options.every))  # of one worker, which has its share of the rate
        print(f"each worker is replaced after {count} requests", flush=True)
        recycling, _ = ours.deploy("recycling", model, worker_max_requests=count, **settings)
        raise SystemExit(_soak(recycling, options, rate, usual))


def _soak(side: Side, options: argparse.Namespace, rate: float, usual_ms: float) -> int:
    seen = {process.pid for process in side.processes()}
    first = len(seen)
    memory, tails, failed, answers = [], [], 0, 0
    windows = max(4, round(options.minutes * 60 / _WINDOW_S))
    for number in range(windows):
        outcome = _window(side, options.connections, _WINDOW_S, rate)
        seen |= {process.pid for process in side.processes()}
        memory.append(pss(side) / 2**20)
        tails.append(outcome.quantile_ms(0.99))
        failed += outcome.failed
        answers += outcome.statuses["200"]
        wrong = {k: n for k, n in outcome.statuses.items() if k != "200"} or ""
        print(f"{(number + 1) * _WINDOW_S:5.0f} s {outcome}   {memory[-1]:7.1f} MiB   {wrong}", flush=True)
    quarter = windows // 4
    early, late = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    tail = statistics.median(tails)
    print(f"{answers} answers, {failed} failed, at least {len(seen) - first} workers were replaced")
    print(f"memory: {early:.1f} MiB in the second quarter, {late:.1f} in the last: {late / early:.3f}")
    print(f"p99: {tail:.2f} ms (the worst window {max(tails):.2f}), usual {usual_ms:.2f}: {tail / usual_ms:.2f}")
    return int(failed > 0 or late > 1.05 * early or tail > 2 * usual_ms)


def _window(side: Side, connections: int, seconds: float, rate: float) -> Outcome:
    return load(side.target, side.body, holds=side.holds, connections=connections, seconds=seconds, rate=rate)


if __name__ == "__main__":
    main()
