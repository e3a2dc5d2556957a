"""Submits to `tasks` and waits for results, as it is told on stdin: ``burst COUNT PROCESSES`` or ``one COUNT``.

Several processes submit, since Celery's client for results in Redis is not for several threads.
"""

import json
import multiprocessing
import sys
import time

from celery.result import ResultSet
from tasks import predict


def submitter(pipe):
    """Submit when told, and wait for the answers when told."""
    while True:
        count = pipe.recv()
        cpu = time.process_time()
        results = [predict.apply_async((n,)) for n in range(count)]
        pipe.send(None)
        answers = ResultSet(results).join_native(timeout=600)
        assert sorted(answer["x"] for answer in answers) == list(range(count))
        for result in results:
            result.forget()
        pipe.send(time.process_time() - cpu)


def burst(pipes, count):
    began = time.perf_counter()
    for pipe in pipes:
        pipe.send(count // len(pipes))
    for pipe in pipes:
        pipe.recv()
    accepted = time.perf_counter() - began
    cpu = sum(pipe.recv() for pipe in pipes)
    return {"accepted_s": accepted, "whole_s": time.perf_counter() - began, "own_cpu_s": cpu}


def one(count):
    latencies = []
    for n in range(count):
        began = time.perf_counter()
        result = predict.apply_async((n,))
        assert result.get(timeout=60) == {"x": n}
        latencies.append(time.perf_counter() - began)
        result.forget()
    return {"latencies_s": latencies}


def main(processes):
    context = multiprocessing.get_context("fork")
    pipes = []
    for _ in range(processes):
        mine, theirs = context.Pipe()
        context.Process(target=submitter, args=(theirs,), daemon=True).start()
        pipes.append(mine)
    print("ready", flush=True)
    for line in sys.stdin:
        verb, number = line.split()
        answer = burst(pipes, int(number)) if verb == "burst" else one(int(number))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
