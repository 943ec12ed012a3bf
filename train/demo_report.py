"""The demonstration as a page, a picture, and five lines."""

from __future__ import annotations

from typing import Any

from packer.eval.score import Score
from packer.train.curves import draw_logged
from packer.train.demo import ARTIFACT, CHECKPOINT, PLAN, UNPACKED, Demo
from packer.train.demo_text import Document

from packer.files import write_bytes
from packer.reports import html as html_report
from packer.reports.agg import Axes, EngFormatter, Figure, own_style
from packer.reports.colours import ACCENT, CURVE, LINE, PAPER
from packer.reports.html import Html
from packer.reports.pictures import inline_svg, save
from packer.reports.plots import draw_bytes, new_panels
from packer.reports.report import Report, report_packed

PAGE, PICTURE = "report.html", "report.png"
FILES = {"checkpoint": CHECKPOINT, "plan": PLAN, "artifact": ARTIFACT, "unpacked": UNPACKED}
FILES |= {"page": PAGE, "picture": PICTURE}
OWN = (
    "packer plan model.pt --cap 16MB -o plan.json && "
    "packer pack model.pt --plan plan.json -o model.pack"
)


def write_report(demo: Demo) -> None:
    """The picture, and the page with the same in it. Raises OutputError."""
    with own_style():
        save(draw(demo), str(demo.folder / PICTURE))
    write_bytes(demo.folder / PAGE, describe_page(demo).encode())


def byte_report(demo: Demo) -> Report:
    return report_packed(demo.packed, str(demo.folder / ARTIFACT))


def draw(demo: Demo) -> Figure:
    """Loss and bits per byte while training; bytes by layer and role, and against the cap.

    Inside `own_style`.
    """
    figure, (loss, validation, layers, sizes) = new_panels(2, 2)
    cap = demo.config.pack.cap
    draw_logged(loss, "loss", demo.metrics, cap)
    draw_logged(validation, "bits_per_byte", demo.metrics, cap)
    draw_bytes(layers, byte_report(demo))
    _draw_sizes(sizes, demo)
    return figure


def _draw_sizes(axes: Axes, demo: Demo) -> None:
    """Both files as bars, each with its score, and the cap."""
    for place, (one, words) in enumerate(
        ((demo.after, "artifact"), (demo.before, "checkpoint, fp32"))
    ):
        axes.barh([words], [one.subject.size_bytes], color=(CURVE, LINE)[place], height=0.5)
        axes.annotate(
            f"{one.subject.size_bytes:,} bytes\n{one.score.bits_per_byte:.4f} bits per byte",
            (one.subject.size_bytes, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 2},
        )
    axes.axvline(demo.config.pack.cap, color=ACCENT, linewidth=0.8, linestyle="--", label="cap")
    axes.set_xlim(0, 1.45 * demo.before.subject.size_bytes)
    axes.set_ylim(-0.6, 1.8)
    axes.set_title("before and after")
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.legend(fontsize="small", loc="upper right")


def describe_page(demo: Demo) -> str:
    """report.html."""
    before, after = demo.before, demo.after
    account = demo.packed.account
    lead = (
        f"A model of {demo.weights:,} weights, {before.subject.size_bytes:,} bytes in fp32, was "
        f"trained on {demo.corpus.source}, packed under a cap of {account.cap_bytes:,} bytes, read "
        "back from the file, and scored before and after on text that it never saw."
    )
    return html_report.page("A language model under a byte cap", lead, _blocks(demo, after.score))


def _blocks(demo: Demo, after: Score) -> list[Html]:
    account = demo.packed.account
    with own_style():
        picture = inline_svg(draw(demo), "Training and packing")
    notes = [html_report.paragraph(demo.note)] if demo.note else []
    return [
        html_report.facts(_facts(demo, after)),
        html_report.heading("The account, to the byte"),
        html_report.account_bar(account),
        *notes,
        html_report.heading("Training and packing"),
        html_report.figure(
            picture,
            "Above: training loss and score while training; from the dotted line on, the model "
            "sees its weights as they will be packed. Below: the artifact's bytes, and both files.",
        ),
        html_report.heading("What the difference reads like"),
        html_report.paragraph(
            f"Both models go on from the first letters of {demo.corpus.valid[0].name}, with the "
            "same draws. First the checkpoint, then the artifact:"
        ),
        *(html_report.verbatim(sample) for sample in demo.samples),
        html_report.heading("Where the bytes go"),
        html_report.byte_tables(byte_report(demo)),
        html_report.heading("Where the seconds went"),
        html_report.table(
            ("step", ">seconds"),
            [(step, f"{seconds:.1f}") for step, seconds in demo.seconds.items()],
        ),
        html_report.heading("The text"),
        html_report.table(("", ">documents", ">bytes", ">tokens"), _text_rows(demo)),
        html_report.paragraph(
            f"The first {demo.before.score.tokens:,} of the held-out tokens are scored, while "
            f"training and at the end. Held out: {_names(demo.corpus.valid)}"
        ),
        html_report.heading("Your own checkpoint"),
        html_report.verbatim(_next_steps(demo)),
    ]


def _facts(demo: Demo, after: Score) -> list[tuple[str, str]]:
    account = demo.packed.account
    return [
        (f"{demo.before.score.bits_per_byte:.4f}", "bits per byte before, fp32"),
        (f"{after.bits_per_byte:.4f}", "bits per byte after, through the file"),
        (_spell_delta(demo), "difference ± standard error"),
        (f"{ratio(demo):.1f} ×", f"smaller: {account.artifact_bytes:,} bytes"),
    ]


def _spell_delta(demo: Demo) -> str:
    difference = demo.after.difference
    assert difference is not None  # the artifact is compared with the checkpoint
    error = difference.stderr_bits_per_byte
    return f"{difference.delta_bpb:+.4f}" + ("" if error is None else f" ± {error:.4f}")


def ratio(demo: Demo) -> float:
    return demo.before.subject.size_bytes / demo.packed.account.artifact_bytes


def _text_rows(demo: Demo) -> list[tuple[str, ...]]:
    splits = (("training", demo.corpus.train, "train"), ("held out", demo.corpus.valid, "val"))
    counts = (
        (words, len(texts), sum(text.size_bytes for text in texts), demo.manifest[split]["tokens"])
        for words, texts, split in splits
    )
    return [(words, *(f"{count:,}" for count in numbers)) for words, *numbers in counts]


def _names(documents: tuple[Document, ...]) -> str:
    return ", ".join(sorted(document.name for document in documents))


def _next_steps(demo: Demo) -> str:
    folder = demo.folder
    return (
        f"# this model, looked at again\n"
        f"packer report {folder / PLAN}\n"
        f"packer verify {folder / ARTIFACT} --against {folder / CHECKPOINT}\n"
        f"packer pack {folder / CHECKPOINT} --cap 600KB -o smaller.pack\n"
        f"# yours\n"
        f"packer inspect model.pt\n"
        f"{OWN.replace(' && ', chr(10))}\n"
        f"packer verify model.pack --against model.pt --plan plan.json"
    )


def five_lines(demo: Demo) -> tuple[str, ...]:
    """What happened, and what to type next."""
    text = sum(document.size_bytes for document in demo.corpus.train)
    schedule, batch = demo.config.schedule, demo.config.batch
    return (
        f"text: {text:,} bytes, {demo.corpus.source}; {len(demo.corpus.valid):,} more documents "
        "held out",
        f"trained: {demo.weights:,} weights in {schedule.iterations:,} steps of {batch.tokens:,} "
        f"tokens, {demo.seconds['train']:.0f} s; {demo.before.score.bits_per_byte:.4f} bits per "
        f"byte on {demo.before.score.tokens:,} held-out tokens, in "
        f"{demo.before.subject.size_bytes:,} bytes of fp32",
        f"packed: {demo.folder / ARTIFACT}: {demo.packed.account}",
        f"through the file: {demo.after.score.bits_per_byte:.4f} bits per byte, "
        f"{_spell_delta(demo)}, {ratio(demo):.1f} times smaller; see {demo.folder / PAGE}",
        f"next, your own checkpoint: {OWN}",
    )


def to_json(demo: Demo) -> dict[str, Any]:
    """What `--json` prints."""
    folder = demo.folder
    report = byte_report(demo).to_json()
    return {
        "output": str(folder),
        "source": demo.corpus.source,
        "train_bytes": sum(document.size_bytes for document in demo.corpus.train),
        "valid_documents": [document.name for document in demo.corpus.valid],
        "vocab_size": demo.manifest["tokenizer"]["vocab_size"],
        "train_tokens": demo.manifest["train"]["tokens"],
        "weights": demo.weights,
        "steps": demo.config.schedule.iterations,
        "seed": demo.config.run.seed,
        "before": demo.before.to_json(),
        "after": demo.after.to_json(),
        "ratio": ratio(demo),
        "note": demo.note,
        "artifact": report,
        "seconds": dict(demo.seconds),
        "files": {name: str(folder / file) for name, file in FILES.items()},
    }
