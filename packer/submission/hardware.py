"""The machine of a run, from claims and logs: the contest's limits are for eight H100."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONTEST_GPUS = 8
CONTEST_MODEL = re.compile(r"(?<![a-z])h100", re.IGNORECASE)
WORDS = {"single": 1, "one": 1, "two": 2, "four": 4, "eight": 8}
COUNT = re.compile(
    rf"(?<![\w.])(\d{{1,4}}|{'|'.join(WORDS)})"
    r"(?: ?[x×*-]? ?(?:nvidia |amd |geforce )*(?:rtx |gtx |tesla )?[a-z]{1,2}\d{2,4}\w*| ?gpus?\b|"
    r" ?[x×*] ?(?:nvidia |amd |geforce )*(?:rtx |gtx )?[a-z]*\d)",
    re.IGNORECASE,
)
COUNT_AFTER = re.compile(r"(?:[a-z]\d{2,4}\w*|gpus?) ?[x×*:=] ?(\d{1,4})\b", re.IGNORECASE)
OTHER_MODEL = re.compile(
    r"(?:(?<![a-z0-9])|(?<=\d[x×]))(?:(?:geforce |nvidia )*(?:rtx|gtx) ?\w+(?: ti)?|"
    r"a(?:10g?|30|40|100|800|[456]000)|l(?:4|40s?)|t4|v100|p(?:4|40|100)|k80|"
    r"(?:gh|gb|b|h)(?:200|300|800|20)|gb10|mi\d{3}x?|[345]0[5-9]0(?: ti)?|titan \w+|tpu[ \w-]*|"
    r"apple \w+(?: \w+)?|m[1-5] (?:pro|max|ultra)|mlx|dgx spark|jetson|cpu|colab|kaggle)"
    r"(?![a-rt-z0-9])",
    re.IGNORECASE,
)
HARDWARE_KEYS = re.compile(
    r"hardware|^(?:gpus?|n_?gpus?|num_?gpus?|gpu_?(?:type|model|name|count|num)|world_?size|"
    r"nproc(?:_per_node)?|accelerators?|devices?|device_name|machine|compute)$",
    re.IGNORECASE,
)
COUNT_KEYS = re.compile(r"gpus$|count|num|world_?size|nproc|^n_|gpus?$|devices", re.IGNORECASE)
DEEPEST = 3
LARGEST_COUNT = 9_999


@dataclass(frozen=True)
class Hardware:
    """gpus: their number. model: of a processor other than the contest's. None if unknown."""

    gpus: int | None = None
    model: str | None = None

    @property
    def other(self) -> str | None:
        """A description of a machine other than the contest's; None if it may be the contest's."""
        gpus = None if self.gpus is None else f"{self.gpus} GPU{'s' * (self.gpus != 1)}"
        if self.model is not None:
            return self.model if gpus is None else f"{self.model} ({gpus})"
        return gpus if self.gpus != CONTEST_GPUS else None


def hardware_in(text: str) -> Hardware:
    """The hardware named in a text such as 2x RTX 4090."""
    before, after = COUNT.search(text), COUNT_AFTER.search(text)
    written = before[1].lower() if before else after[1] if after else None
    count = None if written is None else WORDS.get(written) or int(written)
    other = None if CONTEST_MODEL.search(text) else OTHER_MODEL.search(text)
    return Hardware(count, other[0].strip() if other else None)


def claimed_hardware(value: Mapping[str, Any]) -> Hardware:
    """The hardware named in a submission.json, by the first key of each kind."""
    gpus: int | None = None
    texts: list[str] = []
    for key, entry in _entries(value, 0, False):
        if isinstance(entry, str) and not entry.strip().isdigit():
            texts.append(entry)
        elif COUNT_KEYS.search(key) and gpus is None and 0 < int(entry) <= LARGEST_COUNT:
            gpus = int(entry)
    named = hardware_in(", ".join(texts))
    return Hardware(gpus if gpus is not None else named.gpus, named.model)


def _entries(value: Mapping[str, Any], depth: int, inside: bool) -> Iterator[tuple[str, str | int]]:
    """(key, value) of all keys about hardware; inside: of an object that is about it."""
    for key, entry in value.items():
        matches = HARDWARE_KEYS.search(key) is not None
        if isinstance(entry, dict) and depth < DEEPEST:
            yield from _entries(entry, depth + 1, inside or matches)
        elif (matches or inside) and isinstance(entry, str | int) and not isinstance(entry, bool):
            yield key, entry
