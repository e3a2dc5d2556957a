"""Metrics of many sources as one text in the format of Prometheus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["CONTENT_TYPE", "Exposition", "by_endpoint"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_COMMENT = re.compile(r"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) ?(.*)")
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(.+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ROUTE = re.compile(r"([0-9a-f]{24})_(.+)")


@dataclass
class _Family:
    comments: dict[str, str] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)


class Exposition:
    """Collects families from several texts; each is described once, with the samples of all."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def add(self, text: str, labels: Mapping[str, str] | None = None) -> None:
        """Add the samples of a text, each with `labels`; a label of its own of that name is kept as ``exported_*``."""
        family = ""
        for line in text.splitlines():
            comment = _COMMENT.fullmatch(line)
            if comment is not None:
                kind, family, words = comment.groups()
                self._family(family).comments.setdefault(kind, words)
                continue
            sample = _SAMPLE.fullmatch(line)
            if sample is not None and not line.startswith("#"):
                name, own, value = sample.groups()
                if family == "" or not name.startswith(family):
                    family = name
                self._family(family).samples.append(f"{name}{_merged(own or '', labels or {})} {value}")

    def gauge(self, name: str, words: str, value: float, labels: Mapping[str, str]) -> None:
        """Add one sample of a gauge of ours."""
        self._sample("gauge", name, words, value, labels)

    def counter(self, name: str, words: str, value: float, labels: Mapping[str, str]) -> None:
        """Add one sample of a counter of ours."""
        self._sample("counter", name, words, value, labels)

    def histogram(
        self, name: str, words: str, buckets: Mapping[float, int], total: float, labels: Mapping[str, str]
    ) -> None:
        """Add one histogram of ours; `buckets` are cumulative, by their upper limits, of which the last is infinite."""
        for limit, value in buckets.items():
            own = {**labels, "le": "+Inf" if limit == float("inf") else f"{limit:g}"}
            self._sample("histogram", name, words, value, own, suffix="_bucket")
        self._sample("histogram", name, words, total, labels, suffix="_sum")
        self._sample("histogram", name, words, max(buckets.values()), labels, suffix="_count")

    def _sample(
        self, kind: str, name: str, words: str, value: float, labels: Mapping[str, str], *, suffix: str = ""
    ) -> None:
        family = self._family(name)
        family.comments.update(HELP=words, TYPE=kind)
        family.samples.append(f"{name}{suffix}{_merged('', labels)} {_number(value)}")

    def text(self) -> str:
        lines = []
        for name, family in self._families.items():
            lines += [f"# {kind} {name} {words}" for kind, words in sorted(family.comments.items())]
            lines += family.samples
        return "\n".join(lines) + "\n"

    def _family(self, name: str) -> _Family:
        return self._families.setdefault(name, _Family())


def by_endpoint(text: str) -> str:
    """Return Envoy's statistics with the labels endpoint and route in place of Envoy's own name of a route."""

    def renamed(match: re.Match[str]) -> str:
        route = _ROUTE.fullmatch(match[1])
        if route is None:
            return match[0]
        return f'endpoint="{route[1]}",route="{route[2].replace("labels_", "labels/")}"'

    return re.sub(r'envoy_route="([^"]*)"', renamed, text.replace('envoy_virtual_host="models",', ""))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _merged(own: str, labels: Mapping[str, str]) -> str:
    parts = [f'{name}="{value}"' for name, value in labels.items()]
    for name, value in _LABEL.findall(own):
        parts.append(f'{"exported_" + name if name in labels else name}="{value}"')
    return "{" + ",".join(parts) + "}" if parts else ""
