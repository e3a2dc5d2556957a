"""What uWSGI imports: `application`, in each worker once the model is loaded and warm, or in its master for all."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import time
from typing import Any

import uwsgi

from .config import read_config
from .log import Redaction, install, log
from .opening import ending_the_start
from .sharing import load_for_all
from .slots import Slots
from .status import Status

os.environ.pop("PYTHONPATH", None)  # launch.py's, for a compiled uWSGI
if os.path.basename(sys.executable or "uwsgi").startswith("uwsgi"):
    sys.executable = os.environ["DOMINO_PYTHON"]  # what multiprocessing starts
signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # launch.py's is for the master
signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends a worker that loads; uWSGI has a way of its own for later
for _number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
    signal.signal(_number, signal.SIG_DFL)  # where a crash was in Python says more than where it was in C
faulthandler.enable(sys.__stderr__)
random.seed()  # uWSGI's fork does not tell Python: all workers would draw the same numbers

_config = read_config(os.environ)
install(Redaction(_config.secrets))


def _begin(predictor: Any = None) -> Any:
    """Be a worker, or end: what that takes may not go together in the model's environment, Flask with its own packages."""
    slots = Slots(os.path.join(_config.replica_dir, "slots"))
    status = Status(_config.replica_dir, _config.pid, Redaction(_config.secrets))
    try:
        with ending_the_start(slots, status, "the harness"):
            from .worker import Worker
    except BaseException as error:
        log("the worker cannot begin", error=error)
        time.sleep(1)  # uWSGI tries again: not in a hot loop
        os._exit(1)
    return Worker(_config, uwsgi.worker_id(), uwsgi.masterpid(), predictor).start()


if uwsgi.worker_id():
    application = _begin()
else:
    application = load_for_all(_config, uwsgi.worker_id, _begin)
    uwsgi.post_fork_hook = application.complete
