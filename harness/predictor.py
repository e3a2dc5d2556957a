"""The model, behind one face: what is called with the body of a request and gives a result."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from typing import Any, Callable, Sequence

from .config import Config
from .errors import InvalidInput, StartFailed

__all__ = ["Call", "FilePredictor", "Input", "Predictor", "load_predictor", "parse_call"]


class Call:
    """A request to /model, as JSON gave it.

    Attributes
    ----------
    data : dict or None
        Keyword arguments, or the columns of one row or of many.
    parameters : list or None
        Positional arguments; exactly one of the two is set.
    params : dict or None
        Inference parameters of an MLflow model.
    """

    __slots__ = ("data", "parameters", "params")

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        parameters: list[Any] | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        self.data = data
        self.parameters = parameters
        self.params = params


class Input:
    """What a request asks of the model, up to the model itself.

    Attributes
    ----------
    run : callable
        Lets the model answer this request alone; may still find that it does not fit (`InvalidInput`).
    key : object
        Inputs with the same key can be joined; None where this one has to stay alone.
    rows : int
        How many rows it has, where it can be joined.
    row, table : dict, Table or None
        Its one row as JSON gave it, to be checked with others' at once; or all its rows, checked.
    params : dict or None
    wrap : callable or None
        Makes the whole answer of its part of a joined one.
    """

    __slots__ = ("key", "params", "row", "rows", "run", "table", "wrap")

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.key: Any = None
        self.rows = 0
        self.row: Any = None
        self.table: Any = None
        self.params: Any = None
        self.wrap: Any = None


def parse_call(body: Any) -> Call:
    """Check the outer shape of a body of /model.

    Raises
    ------
    InvalidInput
        Unless it is an object with exactly one of `data` (an object) and `parameters` (a list).
    """
    if not isinstance(body, dict):
        raise InvalidInput('the body must be a JSON object: {"data": {name: value}} or {"parameters": [value]}')
    if ("data" in body) == ("parameters" in body):
        both = "both are" if "data" in body else "neither is"
        raise InvalidInput(f"the body must hold either `data` or `parameters`: {both} there")
    unknown = [key for key in body if key not in ("data", "parameters", "params")]
    if unknown:
        raise InvalidInput(f"unknown key {unknown[0]!r} beside `data` or `parameters`")
    for key, kind, words in (
        ("data", dict, "an object"),
        ("parameters", list, "a list"),
        ("params", dict, "an object"),
    ):
        if key in body and not isinstance(body[key], kind):
            raise InvalidInput(f"`{key}` must be {words}, not {json_type(body[key])}")
    return Call(body.get("data"), body.get("parameters"), body.get("params"))


def json_type(value: Any) -> str:
    """Return what JSON calls the type of a value."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


class Predictor:
    """What the rest of the harness asks of a model; see `FilePredictor` and `registry.RegistryPredictor`.

    Methods to write: `prepare_call`, `describe`. What /invocations asks for (MLflow's scoring protocol) is refused
    unless `prepare_body` is written too; requests are never joined unless `joined` is set.
    """

    #: What the owner of the endpoint should know about how this model is served.
    notes: Sequence[str] = ()
    #: What joins requests, where they may be.
    joined: Any = None

    def call(self, call: Call) -> Any:
        """Answer a request to /model.

        Raises
        ------
        InvalidInput
            The request does not fit the model. Anything else that is raised is the model's own failure.
        """
        return self.prepare_call(call).run()

    def invoke(self, body: bytes, content_type: str) -> Any:
        """Answer a request to /invocations."""
        return self.prepare_body(body, content_type).run()

    def prepare_call(self, call: Call) -> Input:
        """Check a request to /model as far as it can be checked alone; raises as `call`."""
        raise NotImplementedError

    def prepare_body(self, body: bytes, content_type: str) -> Input:
        """Check a request to /invocations; what is run gives the whole answer."""
        raise InvalidInput(
            "/invocations is MLflow's scoring protocol; this endpoint is a function of a project: use /model"
        )

    def describe(self) -> dict[str, Any]:
        """Return the JSON schemas of this model's bodies, for /openapi.json: ``model`` and, maybe, ``invocations``."""
        raise NotImplementedError


def load_predictor(config: Config) -> Predictor:
    """Load the model that the configuration names.

    Raises
    ------
    StartFailed
        With the reason; its detail is the traceback.
    """
    try:
        if config.source.kind == "File":
            if config.max_batch_size > 1:
                raise StartFailed(
                    f"max_batch_size={config.max_batch_size}: calls of a project's function cannot be joined, only rows "
                    "for a registered model with a signature; set max_batch_size=1"
                )
            return FilePredictor(config)
        from .registry import RegistryPredictor

        return RegistryPredictor(config)
    except StartFailed:
        raise
    except SystemExit as error:
        reason = f"the model ended the process while it was loaded: sys.exit({error.code!r})"
        raise StartFailed(reason, detail=traceback.format_exc()) from error
    except BaseException as error:
        reason = f"the model cannot be loaded: {summary(error)}"
        raise StartFailed(reason, detail=traceback.format_exc()) from error


def summary(error: BaseException) -> str:
    """Return an exception's type and message in one line of at most a thousand characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 1000 else text[:1000] + "..."


class FilePredictor(Predictor):
    """A function of a project, called with the arguments that the request names.

    The script is sourced once, as a module that is not ``__main__``; like ``python script.py``, its folder is first
    on the import path.
    """

    def __init__(self, config: Config) -> None:
        source = config.source
        path = os.path.join(source.path, source.file)
        if not os.path.isfile(path):
            raise StartFailed(f"{source.file}: there is no such file in the project")
        module = _source_script(path, source.path)
        self._name = source.function
        self._function = _find(module, source.function, source.file)
        self._signature = _signature_of(self._function)

    def prepare_call(self, call: Call) -> Input:
        return Input(lambda: self._call(call))

    def _call(self, call: Call) -> Any:
        if call.params is not None:
            raise InvalidInput("`params` are of MLflow models; this endpoint is a function: put them into `data`")
        args: Sequence[Any] = call.parameters or ()
        kwargs = call.data or {}
        if self._signature is not None:
            self._check(args, kwargs)
        result = self._function(*args, **kwargs)
        if inspect.iscoroutine(result):
            import asyncio

            return asyncio.run(result)
        return result

    def _check(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        # Bound beforehand, so that a TypeError of the function's own body stays the model's failure.
        assert self._signature is not None
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidInput(
                f"{self._name}() {error}; it is {self._name}{self._signature}", code="WRONG_ARGUMENTS"
            ) from None

    def describe(self) -> dict[str, Any]:
        from .openapi import arguments_schema

        return {"model": arguments_schema(self._signature)}


def _source_script(path: str, root: str) -> Any:
    folder = os.path.dirname(path)
    sys.path.insert(0, folder)
    if os.path.abspath(folder) != os.path.abspath(root):
        sys.path.insert(1, root)
    name = os.path.splitext(os.path.basename(path))[0]
    if not name.isidentifier() or name in sys.modules:
        name = "_domino_script"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StartFailed(f"{os.path.basename(path)}: no Python script (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: pickle and dataclasses look a class's module up
    spec.loader.exec_module(module)
    return module


def _find(module: Any, name: str, file: str) -> Callable[..., Any]:
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            own = [
                n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
            ]
            there = "; functions there: " + ", ".join(own[:20]) if own else ""
            raise StartFailed(f"{file}: there is no {name!r} in it{there}")
    if not callable(found):
        raise StartFailed(f"{file}: {name!r} is a {type(found).__name__}, which cannot be called")
    return found


def _signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None  # some built-in functions do not tell theirs
