"""The first prediction, made before any caller's: with the model's own example, in every worker."""

from __future__ import annotations

import json
import os
import time
import traceback

from .config import Config
from .encoding import encode
from .errors import InvalidInput, ModelFailed, StartFailed
from .log import log
from .parsing import parse_json
from .predictor import Predictor, parse_call, summary

__all__ = ["example", "warm"]


def warm(config: Config, predictor: Predictor) -> str:
    """Let the model answer its example, if there is one.

    Returns
    -------
    str
        A note for the endpoint's owner; empty where there is nothing to say.

    Raises
    ------
    StartFailed
        The model raised, or its answer has no JSON form: every caller would see the same.
    """
    body, name = example(config)
    if body is None:
        return ""
    started = time.monotonic()
    note = ""
    try:
        try:
            result = _ask(predictor, body)
        except InvalidInput as refused:
            if config.warmup_file:
                raise StartFailed(f"the warm-up is refused: {name}: {refused.message}") from refused
            # The model may work; it is its own example that its signature does not allow.
            note = f"the model's own example does not fit its signature: {refused.message}"
            result = predictor.invoke_leniently(body)
        encode(result)
    except StartFailed:
        raise
    except InvalidInput as refused:
        return f"no warm-up: the model's own example ({name}) is refused: {refused.message}"
    except ModelFailed as failed:
        raise StartFailed(f"the warm-up failed: {failed.message}", detail=failed.traceback) from failed
    except BaseException as error:
        raise StartFailed(
            f"the warm-up failed, with {name}: {summary(error)}", detail=traceback.format_exc()
        ) from error
    log(f"warm after {time.monotonic() - started:.3f} s, with {name}")
    return note


def _ask(predictor: Predictor, body: bytes) -> object:
    document = parse_json(body)
    if isinstance(document, dict) and ("data" in document or "parameters" in document):
        return predictor.call(parse_call(document))
    return predictor.invoke(body, "application/json")


def example(config: Config) -> "tuple[bytes | None, str]":
    """Return the body that the model is warmed with, and the name of the file that it is from; None without one.

    Raises
    ------
    StartFailed
    """
    return _warmup_file(config) if config.warmup_file else _example(config)


def _warmup_file(config: Config) -> "tuple[bytes | None, str]":
    path = os.path.join(config.source.path, config.warmup_file)
    try:
        with open(path, "rb") as file:
            return file.read(), config.warmup_file
    except OSError as error:
        raise StartFailed(f"warmup_file {config.warmup_file} cannot be read: {error.strerror}") from error


def _example(config: Config) -> "tuple[bytes | None, str]":
    """Return the example that MLflow saved with the model, as a body of /invocations."""
    if config.source.kind != "Registry":
        return None, ""
    folder = config.source.path
    path = os.path.join(folder, "serving_input_example.json")
    if os.path.isfile(path):
        with open(path, "rb") as file:
            return file.read(), "serving_input_example.json"
    # MLflow before 2.13 kept the example only, as a frame or an array.
    path = os.path.join(folder, "input_example.json")
    if not os.path.isfile(path):
        return None, ""
    with open(path, encoding="utf-8") as file:
        example = json.load(file)
    if isinstance(example, dict) and "data" in example and set(example) <= {"columns", "index", "data"}:
        return json.dumps({"dataframe_split": example}).encode("utf-8"), "input_example.json"
    if isinstance(example, dict) and len(example) == 1 and set(example) <= {"inputs", "instances"}:
        return json.dumps(example).encode("utf-8"), "input_example.json"
    return None, ""
