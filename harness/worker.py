"""The life of one worker process: load, warm up, report, serve."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from .app import Front, create_app, is_untouched
from .config import Config
from .connection import Connection, before_exit
from .errors import StartFailed
from .hot import HotPath
from .joining import Joiner
from .log import Redaction, log
from .metrics import Metrics
from .opening import open_when_all_are_ready
from .predictor import Predictor, load_predictor, summary
from .progress import follow_progress
from .readiness import Readiness
from .service import Service
from .sharing import allowance_s, dump_before, note_apart
from .slots import Phase, Retiring, Slots, State
from .status import Status
from .tokens import Tokens
from .tracker import Tracker
from .trial import try_joining
from .warmup import example, warm

__all__ = ["Worker"]

#: How often a worker looks at the tokens and says that it lives.
_TICK_S = 0.05


class Worker:
    """One uWSGI worker.

    Parameters
    ----------
    config : Config
    number : int
        As uWSGI counts, from 1.
    master : int
        Process id of uWSGI's master.
    predictor : Predictor or None
        The model, where it was loaded for all workers.
    """

    def __init__(self, config: Config, number: int, master: int, predictor: Predictor | None = None) -> None:
        self._config = config
        self._number = number
        self._master = master
        self._joiner: Joiner | None = None
        self._imported = 0
        self._slots = Slots(os.path.join(config.replica_dir, "slots"))
        self._predictor = predictor
        self._status = Status(config.replica_dir, config.pid, Redaction(config.secrets))

    def start(self) -> Any:
        """Load and warm the model, report, and return the WSGI application; where that fails end the replica."""
        before = self._slots.worker(self._number)
        if self._slots.phase is Phase.FAILED or (self._slots.phase is Phase.STARTING and before.starts):
            # A model that kills its process is not tried again: the watchdog, which finds the dead one in the slots,
            # says why, and ends the replica.
            time.sleep(3600)
        self._slots.enter(self._number, os.getpid())
        if before.starts and before.state != State.READY:
            time.sleep(1)  # the process before this one died while it loaded: not in a hot loop
        try:
            return self._start()
        except StartFailed as error:
            self._give_up(error)
        except (
            BaseException
        ) as error:  # without an application uWSGI would answer each request with an error of its own
            reason = f"the harness cannot start: {summary(error)}"
            self._give_up(StartFailed(reason, detail=traceback.format_exc()))

    def _start(self) -> Any:
        shared = self._slots.loaded and self._slots.phase is Phase.STARTING
        started = self._slots.started if shared else time.monotonic()
        tokens = Tokens(
            self._config.tokens,
            digests=self._config.token_digests,
            open_to_all=self._config.open_to_all,
            acknowledgement=os.path.join(self._config.replica_dir, f"tokens.{self._number}"),
        )
        metrics = Metrics(self._slots, self._number)
        self._status.move("loading")
        predictor = self._load()
        service = Service(self._config, predictor, tokens)
        self._warm(predictor)
        tracker = Tracker(
            self._config.request_timeout_s, slots=self._slots, worker=self._number, leave=self._finish_this_request,
            longest_s=self._config.async_timeout_s,
            may_take_longer=tokens.is_gateway if self._config.is_async else None,
        )  # fmt: skip
        front = self._front(service, tracker, metrics, predictor)
        if self._config.is_async and self._joiner is None:  # of joined predictions no one is at its own
            follow_progress(self._slots, self._number, tracker, Redaction(self._config.secrets))
        self._finish_before_exit()
        threading.Thread(target=self._tick, args=(tokens, front), name="domino-ticker", daemon=True).start()
        faulthandler.cancel_dump_traceback_later()
        self._slots.set_load_time(self._number, time.monotonic() - started)
        self._slots.set_state(self._number, State.READY)
        open_when_all_are_ready(self._config, self._slots, self._status)
        return front

    def _front(self, service: Service, tracker: Tracker, metrics: Metrics, predictor: Predictor) -> Front:
        app = create_app(service, metrics, Readiness(self._slots, self._config.replica_dir))
        connection = Connection()
        front = Front(app, tracker, metrics, connection)
        joiner = None
        if predictor.joined is not None:
            joiner = Joiner(
                predictor.joined,
                send=front.send,
                keep=front.keep,
                others_wait=connection.others_wait,
                observer=metrics,
                delay_s=self._config.max_batch_delay_ms / 1000,
                note=lambda note: self._status.move("warming", note=note),
            )
            joiner.proven, why = try_joining(predictor, example(self._config)[0])
            if why:
                joiner.stop_joining(why)
            self._joiner = joiner
        front.hot = HotPath(service, lambda: is_untouched(app), joiner)
        return front

    def _load(self) -> Predictor:
        if self._predictor is not None:
            dump_before(allowance_s(self._config.start_timeout_s, self._slots))
            return self._predictor
        dump_before(self._config.start_timeout_s - (time.monotonic() - self._slots.started))
        return load_predictor(self._config)

    def _warm(self, predictor: Predictor) -> None:
        self._slots.set_state(self._number, State.WARMING)
        self._status.move("warming")
        for note in (*predictor.notes, warm(self._config, predictor)):
            if note:
                self._status.move("warming", note=note)

    def _finish_this_request(self) -> None:
        """Let uWSGI end this process after the request that this thread serves."""
        if self._joiner is not None:
            self._joiner.finish()
        self._slots.retire(self._number, Retiring.TOLD)
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)

    def _finish_before_exit(self) -> None:
        """See to it that kept callers are answered before the process ends: uWSGI takes it for idle.

        What was registered last comes first at the exit, and a model must not be asked when libraries of its have
        already torn themselves down: so again whenever something was imported.
        """
        if self._joiner is not None and len(sys.modules) != self._imported:
            self._imported = len(sys.modules)
            before_exit(self._joiner.finish)

    def _give_up(self, error: StartFailed) -> None:
        log(f"the start failed: {error.reason}\n{error.detail}".rstrip())
        if self._slots.phase is Phase.STARTING and self._slots.loaded:
            # It may have been the fork: the first process begins again without one when uWSGI has ended.
            note_apart(self._status, f"after the fork {error.reason}")
            os.kill(self._master, signal.SIGKILL)
            time.sleep(10)
        if self._slots.phase in (Phase.STARTING, Phase.FAILED):
            self._status.fail(error.reason, error.detail)
            self._slots.phase = Phase.FAILED
            time.sleep(10)  # the watchdog ends the replica: if this process ended first, uWSGI would start another
            os.kill(self._master, signal.SIGKILL)
        time.sleep(1)  # a replacement that cannot load beside workers that serve: tried again, not in a hot loop
        os._exit(1)

    def _tick(self, tokens: Tokens, front: Front) -> None:
        while True:
            time.sleep(_TICK_S)
            self._slots.beat(self._number)
            self._finish_before_exit()
            for task in (tokens.refresh, front.give_up_overdue):
                try:
                    task()
                except Exception as error:
                    log("the worker's ticker stumbled", error=error)
