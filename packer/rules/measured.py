"""Checks the bytes of artifacts: the codec, the shapes, and scales clamped to their floor."""

from __future__ import annotations

import re
from collections.abc import Mapping

from packer.rules.finding import Finding, Options, Point, Rule, Status, unknown, verdict
from packer.submission.account import accounts
from packer.submission.folder import Submission

CODEC_WORDS = {
    "zstd": r"zstd|zstandard",
    "lrzip": r"lrzip|pergroup|per-group",
    "brotli": r"brotli",
    "xz": r"lzma|xz",
    "zlib": r"zlib",
}
# "LZMA-packed code" does not refer to the artifact.
OF_CODE = re.compile(
    r"[\w+]+[- ](?:(?:packed|compressed|wrapped|minified|self-extracting)[- ]?)*"
    r"(?:code|script|source|wrapper|train_gpt)\b",
    re.IGNORECASE,
)
MIN_SATURATED = 0.5
BLOCK = re.compile(r"\b(?:blocks|layers|h)\.(\d{1,6})\.")


def codec(submission: Submission, options: Options) -> Finding | None:
    """The compressor that is named is the one that was used."""
    points: list[Point] = []
    for log in submission.logs:
        if log.fallback is not None:
            text = f"{log.name}: the compressor was missing: {log.fallback[:120]!r}"
            points.append(Point(Status.FAIL, text))
    labels, claimed = _labels(submission), _claimed(submission)
    named = {**labels, **claimed}
    if len(named) > 1 and "zlib" not in claimed:  # the contest's script prints it for every codec
        named.pop("zlib", None)
    runs = accounts(submission)
    unread = [run for run in runs if run.artifact is None]
    for artifact in (run.artifact for run in runs if run.artifact is not None):
        used = artifact.codec
        text = f"{artifact.name} is under {used}"
        if not named or used in ("bytecap", "none"):
            points.append(Point(Status.PASS, f"{text}; nothing names another"))
        elif used in named:
            points.append(Point(Status.PASS, f"{text}, as {named[used]} says"))
        else:
            words = ", ".join(f"{word} ({where})" for word, where in named.items())
            hint = "; the module was missing when it was made" if used == "zlib" else ""
            # Scripts keep the labels of the scripts they were derived from.
            status = Status.FAIL if claimed else Status.WARN
            points.append(Point(status, f"{text}, while the claim is {words}{hint}"))
    if not submission.artifacts and not points:
        return unknown("codec", "no artifact is here, and log labels do not prove the codec")
    if unread and submission.artifacts:
        names = ", ".join(run.name for run in unread)
        points.append(Point(Status.UNKNOWN, f"the artifacts of {names} are not here"))
    return verdict("codec", points, "codecs are as claimed")


def _labels(submission: Submission) -> dict[str, str]:
    """Codec -> where it is named, in labels of logs and in the model's key of submission.json."""
    labels = " ".join(label for log in submission.logs for label in log.labels)
    claims = submission.claims
    key = claims.model.key if claims is not None and claims.model is not None else ""
    named = dict.fromkeys(_codecs_in(key), "submission.json's keys")
    return named | dict.fromkeys(_codecs_in(labels), "the log label")


def _claimed(submission: Submission) -> dict[str, str]:
    """Codec -> where it is named, in the author's own text."""
    text = submission.claims.text if submission.claims is not None else ""
    return dict.fromkeys(_codecs_in(OF_CODE.sub("", text)), "submission.json")


def _codecs_in(text: str) -> list[str]:
    plain = text.lower().replace("_", " ")
    return [
        word
        for word, pattern in CODEC_WORDS.items()
        if re.search(rf"(?<![a-z])(?:{pattern})(?![a-z])", plain)
    ]


def readable(submission: Submission, options: Options) -> Finding | None:
    """Artifacts that are here can be read."""
    if not submission.artifacts:
        return None
    points = [
        Point(Status.UNKNOWN, one.problem)
        if one.problem is not None
        else Point(Status.PASS, f"{one.name}: {one.layout}, {len(one.shapes)} tensors")
        for one in submission.artifacts
    ]
    return verdict("artifact", points, "every artifact is read")


def scale_floor(submission: Submission, options: Options) -> Finding | None:
    """Row scales are not mostly clamped to one floor for the whole model."""
    points = []
    for one in submission.artifacts:
        if not one.rows:
            continue
        share = one.floored / one.rows
        text = f"{one.name}: {100 * share:.0f} % of {one.rows:,} row scales sit on their floor"
        if share >= MIN_SATURATED:
            text += ": the step is one for the whole model, and its size follows the weights' norm"
        points.append(Point(Status.WARN if share >= MIN_SATURATED else Status.PASS, text))
    return verdict("scale-floor", points, "scales are free of their floor") if points else None


def shapes(submission: Submission, options: Options) -> Finding | None:
    """Layers and width of the artifact are those of the log."""
    readable = [one for one in submission.artifacts if one.shapes]
    if not readable:
        return None
    claimed: dict[str, dict[str, int]] = {}
    for log in submission.logs:
        facts = {
            "num_layers": log.num_layers,
            "model_dim": log.model_dim,
            "vocab_size": log.vocab_size,
        }
        known = {key: value for key, value in facts.items() if value is not None}
        if known:
            claimed[log.name] = known
    if not claimed:
        return unknown("shapes", "no log names layers and width")
    points = []
    for one in readable:
        stored = _settings_of(one.shapes)
        for where, settings in claimed.items():
            for key, value in settings.items():
                if key in stored:
                    good = stored[key] == value
                    text = f"{key} is {stored[key]} in {one.name} and {value} in {where}"
                    points.append(Point(Status.PASS if good else Status.FAIL, text))
    if not points:
        return unknown("shapes", "the artifact's tensor names are unknown")
    return verdict("shapes", points, "layers and width of log and artifact agree")


def _settings_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    settings: dict[str, int] = {}
    layers = [int(match[1]) for match in map(BLOCK.search, shapes) if match]
    if layers:
        settings["num_layers"] = 1 + max(layers)
    embedding = next((s for n, s in shapes.items() if n.endswith("tok_emb.weight")), None)
    if embedding is not None and len(embedding) == 2:
        settings["vocab_size"], settings["model_dim"] = embedding
    return settings


RULES: tuple[Rule, ...] = (codec, readable, scale_floor, shapes)
