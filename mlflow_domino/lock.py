"""Turns what a version asks for into a lock: every package with its exact version and the hashes of its files.

A lock holds no index, no password and no path of this machine; files inside the model are named relative to
``${DOMINO_MODEL_FOLDER}``. Its hash is its environment's name.

MLflow's whole server is not needed to run a model. The lean lock has ``mlflow-skinny`` at the same version, with
numpy and pandas, which `mlflow.pyfunc` imports. It is resolved under the whole lock's versions as constraints, so it
is always a part of what pip would have installed, never something else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from packaging.requirements import Requirement as PackageRequirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from mlflow_domino.errors import EnvironmentFailed
from mlflow_domino.interpreter import Interpreter
from mlflow_domino.requirements import ModelFacts, Requirement, Requirements
from mlflow_domino.resolver import Uv, culprits

__all__ = ["HARNESS", "SELDON", "Recipe", "environment_hash", "lean_lock", "python_of", "resolve", "whole_lock"]

_HARNESS = "the harness"
_IMAGE = "the environment image"
#: What the harness imports, and the server it runs under.
HARNESS = (
    Requirement("pyuwsgi", "pyuwsgi>=2.0.21", _HARNESS),
    Requirement("flask", "flask>=2.0", _HARNESS),
    Requirement("six", "six>=1.12", _HARNESS),
    Requirement("prometheus-client", "prometheus-client>=0.8", _HARNESS),
)
#: What an asynchronous version needs besides; in an environment of its own, unless the owner keeps his as it is.
SELDON = Requirement("seldon-core", "seldon-core>=1.18.2", _HARNESS)
_SPELLED = {
    "pyuwsgi": "uWSGI", "flask": "Flask", "six": "Six", "prometheus-client": "Prometheus-client",
    "seldon-core": "seldon-core",
}  # fmt: skip
_FORMAT = "# Lock of mlflow-domino, format 1, for "
_NETWORK = re.compile(
    r"Failed to fetch|error sending request|Request failed after|network was disabled|dns error|401 Unauthorized"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a lock.

    Attributes
    ----------
    requirements : Requirements
        The model's or the project's own.
    harness : tuple of Requirement
        Added by us; empty with ``install_harness_packages=false``.
    mlflow : Requirement or None
        The line about MLflow that the lean lock may replace; None where it must stay as it is, or there is none.
    given : frozenset of str
        Of the harness's packages, those that the environment image has.
    needs : tuple of Requirement
        What must be in the result.
    """

    requirements: Requirements
    harness: tuple[Requirement, ...]
    mlflow: Requirement | None
    interpreter: Interpreter
    indexes: str
    given: frozenset[str] = frozenset()
    needs: tuple[Requirement, ...] = HARNESS

    @classmethod
    def of(
        cls,
        requirements: Requirements,
        facts: ModelFacts | None,
        interpreter: Interpreter,
        *,
        indexes: str,
        install_harness: bool,
        given: Mapping[str, str] | None = None,
        needs: tuple[Requirement, ...] = HARNESS,
    ) -> Recipe:
        """Add what the harness needs, and MLflow where a model does not name it; `facts` is None for a project.

        Parameters
        ----------
        given : mapping of str to str, or None
            Versions of what is there already and stays: it is not installed again, and what is added must go with it.
        needs : tuple of Requirement
            What must be in the result, and is added where it is missing and may be.
        """
        mlflow = None
        if facts is not None:
            mlflow = requirements.named("mlflow") or requirements.named("mlflow-skinny")
            if mlflow is None:
                pin = f"=={facts.mlflow_version}" if facts.mlflow_version else ""
                mlflow = Requirement("mlflow", f"mlflow{pin}", "MLmodel")
                requirements = requirements.with_items([mlflow])
            if "@" in mlflow.text or "[" in mlflow.text or mlflow.hashes:
                mlflow = None
        named = {item.name for item in requirements.items}
        there: dict[str, str] = {canonicalize_name(name): version for name, version in (given or {}).items()}
        satisfied = frozenset(need.name for need in needs if _satisfied(need, there))
        added = [
            need for need in needs if need.name not in satisfied and not (need.name == "pyuwsgi" and "uwsgi" in named)
        ]
        pins = [Requirement(n, f"{n}=={v}", _IMAGE) for n, v in sorted(there.items()) if n not in named and _valid(v)]
        requirements = replace(requirements, constraints=(*requirements.constraints, *pins))
        return cls(
            requirements, tuple(added) if install_harness else (), mlflow, interpreter, indexes, satisfied, needs
        )

    def key(self) -> str:
        """Return a digest: two versions with the same recipe get the same lock on this home."""
        asked = self.requirements
        deciding = [
            _FORMAT,
            [(item.text, item.hashes) for item in asked.items],
            [(item.text, item.hashes) for item in asked.constraints],
            [need.text for need in self.harness],
            [asked.prerelease, asked.build_options, asked.contents],
            [self.mlflow.text if self.mlflow else "", self.interpreter.tag, self.indexes],
            *([sorted(self.given)] if self.given else []),
            *([[need.text for need in self.needs]] if self.needs != HARNESS else []),
        ]
        return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:32]

    def whole(self) -> Requirements:
        """Return what is asked for, MLflow whole, with the harness's packages."""
        items = [
            replace(item, text=re.sub("^mlflow-skinny", "mlflow", item.text), name="mlflow")
            if item is self.mlflow
            else item
            for item in self.requirements.items
        ]
        return replace(self.requirements, items=(*items, *self.harness))


def environment_hash(lock: str) -> str:
    return hashlib.sha256(lock.encode()).hexdigest()[:24]


def python_of(lock: str) -> str:
    """Return the Python version that a lock was resolved for."""
    match = re.match(re.escape(_FORMAT) + r"\w+-(\d+\.\d+\.\d+)", lock)
    if not match:
        raise EnvironmentFailed("The stored lock is damaged: its first line does not name an interpreter.")
    return match[1]


def whole_lock(recipe: Recipe, uv: Uv) -> str:
    """Resolve everything that is asked for.

    Raises
    ------
    EnvironmentFailed
        With the lines at fault and the resolver's own message; or naming each of the harness's packages that is
        missing or in conflict.
    """
    return _finished(recipe, uv, recipe.whole())


def lean_lock(recipe: Recipe, uv: Uv) -> str | None:
    """Resolve a part of the whole lock that leaves MLflow's server out; None where there is no such part.

    Raises
    ------
    EnvironmentFailed
        As `whole_lock`.
    """
    if recipe.mlflow is None:
        return None
    whole = recipe.whole()
    pins = _pins(_resolved(recipe, uv, whole, hashes=False))
    kept = [item for item in whole.items if item.name not in ("mlflow", "mlflow-skinny")]
    lean = [Requirement("mlflow-skinny", f"mlflow-skinny=={pins['mlflow']}", recipe.mlflow.where)]
    lean += [Requirement(name, name, "MLflow") for name in ("numpy", "pandas")]
    lean += [Requirement(need.name, need.name, _HARNESS) for need in HARNESS if need.name in pins]
    # A package that skinny needs and the whole does not (older releases) is left free.
    constraints = [Requirement(name, f"{name}=={version}", "") for name, version in pins.items()]
    asked = replace(whole, items=(*lean, *kept), constraints=(*whole.constraints, *constraints))
    finished, text = resolve(asked, recipe.interpreter, uv)
    if finished:
        return None
    return _checked(recipe, asked, text)


def resolve(asked: Requirements, interpreter: Interpreter, uv: Uv, *, hashes: bool = True) -> tuple[str | None, str]:
    """Ask uv; return (its message, "") when it could not, (None, the resolution) when it could."""
    given, limits, result = (uv.folder / name for name in ("requirements.in", "constraints.in", "resolved.txt"))
    given.write_text("\n".join([*asked.build_options, *(item.text for item in asked.items), ""]), "utf-8")
    limits.write_text("\n".join([*(item.text for item in asked.constraints), ""]), "utf-8")
    result.unlink(missing_ok=True)
    options = ["--no-header", "--no-annotate", "--no-strip-extras", "--emit-build-options", "--no-python-downloads"]
    options += ["--generate-hashes"] if hashes else []
    options += ["--prerelease", "allow"] if asked.prerelease else []
    options += ["--constraints", str(limits)] if asked.constraints else []
    finished = uv.run(
        "pip", "compile", given, "--output-file", result,
        "--python", interpreter.path, *options, messages_only=True,
    )  # fmt: skip
    if finished.code != 0:
        return finished.tail or f"uv ended with code {finished.code} and no message", ""
    return None, result.read_text("utf-8")


def _resolved(recipe: Recipe, uv: Uv, asked: Requirements, *, hashes: bool) -> str:
    message, text = resolve(asked, recipe.interpreter, uv, hashes=hashes)
    if message is not None:
        raise _explained(recipe, uv, asked, message)
    return text


def _finished(recipe: Recipe, uv: Uv, asked: Requirements) -> str:
    return _checked(recipe, asked, _resolved(recipe, uv, asked, hashes=True))


def _checked(recipe: Recipe, asked: Requirements, text: str) -> str:
    pins = _pins(text)
    present = {*pins, *(item.name for item in asked.items), *recipe.given}
    missing = [
        need.name
        for need in recipe.needs
        if need.name not in present and not (need.name == "pyuwsgi" and "uwsgi" in present)
    ]
    if missing:
        raise EnvironmentFailed(
            f"The environment lacks {', '.join(_SPELLED[name] for name in missing)}, which the harness needs. "
            "Add them to the requirements, or leave it to install_harness_packages=true."
        )
    if re.search(r"://[^\s/@$]+:[^\s/@$]+@", text):
        raise EnvironmentFailed("The resolver wrote a password into the lock; use ${NAME} in its place and env.NAME=….")
    header = [_FORMAT + recipe.interpreter.tag]
    header += [f"# {path} sha256:{digest}" for path, digest in asked.contents]
    return "\n".join(header) + "\n" + _with_own_hashes(text, asked.items)


def _satisfied(need: Requirement, there: Mapping[str, str]) -> bool:
    """Whether what is there fits; the compiled uWSGI does for pyuwsgi."""
    names = ("pyuwsgi", "uwsgi") if need.name == "pyuwsgi" else (need.name,)
    specifier = PackageRequirement(need.text).specifier
    return any(_valid(there.get(n, "")) and specifier.contains(there[n], prereleases=True) for n in names)


def _valid(version: str) -> bool:
    try:
        Version(version)
    except InvalidVersion:
        return False
    return True


def _pins(text: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def _with_own_hashes(text: str, items: Sequence[Requirement]) -> str:
    """Keep of each package's hashes only those that the requirements themselves allow."""
    allowed = {item.name: item for item in items if item.hashes}
    if not allowed:
        return text
    blocks = re.split(r"(?m)^(?=\S)", text)
    for index, block in enumerate(blocks):
        match = re.match(r"([A-Za-z0-9][\w.-]*)", block)
        item = allowed.get(canonicalize_name(match[1])) if match else None
        if item is None:
            continue
        known = set(re.findall(r"--hash=(\S+)", block))
        kept = [digest for digest in item.hashes if digest in known]
        if not kept:
            raise EnvironmentFailed(
                f"{item.where}: no file of {item.text} in the package index has a hash that the line allows."
            )
        blocks[index] = (
            " \\\n".join([block.split(" \\")[0].rstrip(), *(f"    --hash={digest}" for digest in kept)]) + "\n"
        )
    return "".join(blocks)


def _explained(recipe: Recipe, uv: Uv, asked: Requirements, message: str) -> EnvironmentFailed:
    """Say which lines are at fault, and whether it is the harness that they are in conflict with."""
    if _NETWORK.search(message):
        return EnvironmentFailed(
            "The requirements could not be resolved: a package index does not answer or refuses us. "
            "Look at index_url, extra_index_url, the proxy, and offline=true with find_links.",
            log_tail=message,
        )
    if absent := re.search(r"Because ([\w.-]+) was not found in the package registry", message):
        refusing = uv.indexes.refusing(absent[1])
        if refusing:
            return EnvironmentFailed(
                f"The package index at {', '.join(refusing)} refuses us {absent[1]}: a user or password is missing or "
                "wrong. Set index_url or extra_index_url with both.",
                log_tail=message,
            )
    own = replace(asked, items=tuple(item for item in asked.items if item not in recipe.harness))
    quiet = replace(uv, log=lambda _line: None)
    if recipe.harness and resolve(own, recipe.interpreter, quiet, hashes=False)[0] is None:
        single = [
            need
            for need in recipe.harness
            if resolve(own.with_items([need]), recipe.interpreter, quiet, hashes=False)[0] is not None
        ]
        lines = culprits(message, own.items)
        return EnvironmentFailed(
            f"The requirements conflict with the harness's own packages "
            f"{', '.join(need.text for need in single or recipe.harness)}: "
            f"{'; '.join(map(str, lines)) or 'see the resolver below'}. Loosen these lines.",
            log_tail=message,
        )
    lines = culprits(message, [*asked.items, *asked.constraints])
    named = "; ".join(map(str, lines)) or "see the resolver's message"
    return EnvironmentFailed(
        f"The requirements cannot be resolved on Python {recipe.interpreter.version}: {named}.", log_tail=message
    )
