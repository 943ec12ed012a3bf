"""Checks what counted code accesses: network and data; and points out methods without judging."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from packer.code.self_extracting import unwrap
from packer.code.syntax import parse
from packer.errors import CodeError
from packer.rules.finding import Finding, Options, Point, Rule, Status, verdict
from packer.submission.folder import Submission

NETWORK_MODULES = {
    "urllib",
    "requests",
    "httpx",
    "aiohttp",
    "socket",
    "ftplib",
    "huggingface_hub",
    "datasets",
    "gdown",
    "boto3",
    "wget",
}
# Parts of those modules that do not access the network.
HARMLESS = {"urllib.parse", "urllib.error"}
NETWORK_CALLS = re.compile(
    r"urlopen|urlretrieve|hf_hub_download|snapshot_download|load_dataset|"
    r"load_state_dict_from_url|(?:requests|httpx)\.(?:get|post)|create_connection"
)
SHELL_NETWORK = re.compile(r"\b(?:curl|wget|git clone|pip3? install|apt-get|huggingface-cli)\b")
DATA_FILES = re.compile(r"docs_selected\.jsonl|\.parquet\b|fineweb_val_docs|val_docs\.", re.I)
POINTERS = {
    "test-time training": re.compile(r"\w*(?:ttt|test_time_train)\w*", re.IGNORECASE),
    "n-gram cache": re.compile(r"\w*(?:n_?gram_?(?:cache|table|count|mix)|backoff)\w*", re.I),
    "kNN": re.compile(r"\w*(?:knn|nearest_neigh|faiss)\w*", re.IGNORECASE),
    "SLOT": re.compile(r"\w*(?<![a-z])slot(?:_(?:steps|lr|delta|opt)\w*)?(?![a-z])", re.IGNORECASE),
    "paid prefix": re.compile(r"\w*(?:paid_?prefix|prefix_(?:tokens|blob|store))\w*", re.I),
}


def sources_of(submission: Submission) -> dict[str, str]:
    """Name -> text of all counted code, wrappers opened. Raises CodeError: a damaged wrapper."""
    sources: dict[str, str] = {}
    for file in submission.whole_code:
        inner = unwrap(file.text)
        for module, text in (inner or {"": file.text}).items():
            sources[f"{file.path} (unwrapped {module})" if inner else file.path] = text
    return sources


def _trees(submission: Submission) -> tuple[dict[str, ast.Module], list[Point]]:
    """(the trees by name, an unknown for every source that does not parse)."""
    trees: dict[str, ast.Module] = {}
    unparsed: list[Point] = []
    for name, text in sources_of(submission).items():
        try:
            trees[name] = parse(text, name)
        except CodeError as error:
            unparsed.append(Point(Status.UNKNOWN, str(error)))
    return trees, unparsed


def network(submission: Submission, options: Options) -> Finding | None:
    """Counted code opens no connection and installs nothing."""
    if not submission.code:
        return None
    points: list[Point] = []
    try:
        trees, points = _trees(submission)
        for name, tree in trees.items():
            points += _reaches(name, tree)
    except CodeError as error:
        points.append(Point(Status.UNKNOWN, f"the code cannot be unwrapped: {error}"))
    return verdict("network", points, "counted code names no network call")


def _reaches(name: str, tree: ast.Module) -> Iterator[Point]:
    for node in ast.walk(tree):
        where = f"{name}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            modules = []
        for module in modules:
            if module.partition(".")[0] in NETWORK_MODULES and module not in HARMLESS:
                yield Point(Status.WARN, f"{where}: imports {module}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if NETWORK_CALLS.search(called):
                yield Point(Status.FAIL, f"{where}: calls {called}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            shell = SHELL_NETWORK.search(node.value)
            if shell is not None and len(node.value) < 300:
                yield Point(Status.WARN, f"{where}: the text {shell[0]!r}, as for a shell")


def data_access(submission: Submission, options: Options) -> Finding | None:
    """Counted code does not read the text of the validation set."""
    if not submission.code:
        return None
    try:
        texts = sources_of(submission)
    except CodeError:
        return None  # reported under network
    points = [
        Point(Status.WARN, f"{name}, line {text.count(chr(10), 0, match.start()) + 1}: {match[0]}")
        for name, text in texts.items()
        for match in DATA_FILES.finditer(text)
    ]
    return verdict("data-access", points, "counted code names no documents of the data set")


def pointers(submission: Submission, options: Options) -> Finding | None:
    """Test-time training, caches, kNN and SLOT are pointed out for a reviewer."""
    if not submission.code:
        return None
    try:
        trees, points = _trees(submission)
    except CodeError:
        return None  # reported under network
    for what, pattern in POINTERS.items():
        places = [
            f"{name}, line {node.lineno} ({node.name})"
            for name, tree in trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and pattern.fullmatch(node.name)
        ]
        if places:
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            shown = "; ".join(places[:3])
            points.append(Point(Status.WARN, f"{what}: {shown}{more}; not judged"))
    return verdict("pointers", points, "no test-time training, n-gram cache, kNN or SLOT by name")


RULES: tuple[Rule, ...] = (network, data_access, pointers)
