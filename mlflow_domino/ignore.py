"""What of a project stays out of a version: `.modelignore` and the setting `exclude_files`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_domino.errors import InvalidInput

if TYPE_CHECKING:
    import pathspec

__all__ = ["FILE_NAME", "Ignore"]

FILE_NAME = ".modelignore"


@dataclass(frozen=True)
class Ignore:
    """Patterns in the order in which they were written; the last one that fits a path decides.

    A name or a shell pattern fits files and folders anywhere in the project, one with a slash inside it fits from the
    project's root, one with a slash at its end fits folders only, and ``!`` takes a path back in. These are the rules
    of ``.gitignore``, of which Domino's (file names, folder names, shell patterns) are a part.

    Attributes
    ----------
    patterns : tuple of str
    origins : tuple of str
        Where each pattern stands, for messages.
    """

    patterns: tuple[str, ...]
    origins: tuple[str, ...]
    spec: pathspec.GitIgnoreSpec

    @classmethod
    def read(cls, project: Path, exclude_files: Sequence[str] = ()) -> Ignore:
        """Read the project's `.modelignore`, and add the patterns of the setting after it.

        Raises
        ------
        InvalidInput
            When a pattern is none, or the file cannot be read, naming the line.
        """
        import pathspec  # here: most verbs fetch nothing

        lines = [(f"line {number} of {FILE_NAME}", line) for number, line in enumerate(_lines(project), start=1)]
        lines += [("exclude_files", pattern) for pattern in exclude_files]
        kept = [(origin, _without_dot(line)) for origin, line in lines if line.strip()]
        for origin, pattern in kept:
            try:
                pathspec.GitIgnoreSpec.from_lines([pattern])
            except ValueError as error:
                raise InvalidInput(f"{origin}: {pattern!r} is not a pattern ({error}).") from error
        patterns = tuple(pattern for _, pattern in kept)
        return cls(patterns, tuple(origin for origin, _ in kept), pathspec.GitIgnoreSpec.from_lines(patterns))

    @property
    def takes_back(self) -> bool:
        """Whether a pattern could take in what lies in a folder that is left out."""
        return any(pattern.startswith("!") for pattern in self.patterns)

    def decide(self, path: str) -> bool | None:
        """Return True where `path` is left out, False where a ``!`` pattern takes it back in, None where none fits.

        Parameters
        ----------
        path : str
            Relative to the project, with slashes; a folder's ends with one.
        """
        include = self.spec.check_file(path).include
        return None if include is None else bool(include)

    def reason(self, path: str) -> str:
        """Return which pattern decides about `path`, such as ``line 3 of .modelignore ('*.csv')``; or nothing."""
        index = self.spec.check_file(path).index
        return "" if index is None else f"{self.origins[index]} ({self.patterns[index]!r})"


def _lines(project: Path) -> list[str]:
    path = project / FILE_NAME
    try:
        # Not splitlines(): a name may hold the other characters that it takes for line ends.
        return path.read_text("utf-8-sig", errors="surrogateescape").replace("\r\n", "\n").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error


def _without_dot(pattern: str) -> str:
    """`./data` means `/data`; left as it is, it would fit nothing, in silence."""
    negated = pattern.startswith("!")
    body = pattern[negated:]
    return ("!" if negated else "") + (body[1:] if body.startswith("./") else body)
