"""What can be known of a project's script without running it."""

from __future__ import annotations

import ast
import difflib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow_domino.errors import InvalidInput, NotFound

__all__ = ["check"]

_LITERALS = (ast.Constant, ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.DictComp,
             ast.SetComp, ast.GeneratorExp, ast.Compare)  # fmt: skip
#: With these a script may define names in ways that cannot be read off it.
_DYNAMIC = {"exec", "globals", "setattr", "vars", "locals"}


def check(script: Path, name: str, function: str, *, python_version: str, log: Callable[[str], None]) -> None:
    """Refuse a script that cannot work: a syntax error, no such function, or one that is none.

    Parameters
    ----------
    script, name : Path, str
        The file, and what it is called in messages.
    function : str
        Name that must be bound to something that may be called.
    python_version : str
        Version that it will run on, where the caller said so; empty for any.
    log : callable
        Told when the syntax is another Python's and cannot be judged here.

    Raises
    ------
    InvalidInput, NotFound
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning: the replica's log has it
            module = ast.parse(script.read_bytes(), name)
    except (SyntaxError, ValueError, RecursionError) as error:
        ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
        if python_version and not f"{python_version}.".startswith(f"{ours}."):
            log(f"{name} cannot be parsed by Python {ours}; Python {python_version} will judge it at start")
            return
        raise InvalidInput(_syntax_message(name, error)) from None
    values = [value for bound, value in _bindings(module.body) if bound == function]
    if not values:
        if not _is_dynamic(module, function):
            raise NotFound(_missing_message(module, name, function))
    elif all(_is_data(value) for value in values) or _is_data(_last_plain(module, function)):
        raise InvalidInput(
            f"{name}:{values[-1].lineno}: {function} is {_describe(values[-1])}, not a function; "
            "name a function with -C function=."
        )


def _syntax_message(name: str, error: Exception) -> str:
    if not isinstance(error, SyntaxError):
        return f"{name} is not Python: {error}."
    line = (error.text or "").strip()
    return f"{name}:{error.lineno or 1}: syntax error: {error.msg}" + (f"\n    {line}" if line else "")


def _missing_message(module: ast.Module, name: str, function: str) -> str:
    functions = [
        bound
        for bound, value in _bindings(module.body)
        if isinstance(value, (ast.FunctionDef, ast.AsyncFunctionDef)) and not bound.startswith("_")
    ]
    near = difflib.get_close_matches(function, functions, n=1, cutoff=0.5)
    there = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(functions) or 'none'}."
    return f"{name} has no function {function!r}: {there} Name another with -C function=."


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield each name that statements bind at the level of the module, in order, and the statement."""
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name, statement
            continue
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                yield (alias.asname or alias.name.partition(".")[0]), statement
            continue
        for name in _assigned(statement):
            yield name, statement
        for block in ("body", "orelse", "finalbody"):
            yield from _bindings(getattr(statement, block, []))
        for part in (*getattr(statement, "handlers", []), *getattr(statement, "cases", [])):
            yield from _bindings(part.body)


def _assigned(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement's own expressions bind, without those of its blocks."""
    pending: list[ast.AST] = [
        child for child in ast.iter_child_nodes(statement) if not isinstance(child, (ast.stmt, ast.ExceptHandler))
    ]
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        pending += [
            child
            for child in ast.iter_child_nodes(node)
            if not isinstance(child, (ast.stmt, ast.Lambda)) and not isinstance(node, ast.comprehension)
        ]


def _is_data(statement: ast.stmt | None) -> bool:
    """Whether a statement binds its one name to something that certainly cannot be called."""
    if isinstance(statement, ast.Import):
        return True
    if isinstance(statement, ast.Assign):
        plain = all(isinstance(target, ast.Name) for target in statement.targets)
        return plain and isinstance(statement.value, _LITERALS)
    return isinstance(statement, ast.AnnAssign) and isinstance(statement.value, _LITERALS)


def _last_plain(module: ast.Module, function: str) -> ast.stmt | None:
    """Return the last statement at the outermost level that binds the name, if nothing nested does so later."""
    last: ast.stmt | None = None
    for statement in module.body:
        if any(bound == function for bound, _ in _bindings([statement])):
            last = statement
    return last


def _describe(statement: ast.stmt) -> str:
    if isinstance(statement, ast.Import):
        return "a module"
    value = getattr(statement, "value", None)
    if isinstance(value, ast.Constant):
        kind = type(value.value).__name__
    else:
        kinds = {"JoinedStr": "str", "ListComp": "list", "DictComp": "dict", "SetComp": "set", "Compare": "bool",
                 "GeneratorExp": "generator"}  # fmt: skip
        kind = kinds.get(type(value).__name__, type(value).__name__.lower())
    return f"an {kind}" if kind == "int" else "None" if kind == "NoneType" else f"a {kind}"


def _is_dynamic(module: ast.Module, function: str) -> bool:
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            return True
        if isinstance(node, ast.Global) and function in node.names:
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _DYNAMIC:
            return True
    return any(bound == "__getattr__" for bound, _ in _bindings(module.body))
