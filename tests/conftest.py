"""Shared by every test: one torch thread per worker, and real inputs where a checkout has them."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints and texts beside the checkout; tests skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "checkpoints").is_dir():
        pytest.skip("the shared inputs are not here")
    return folder


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, here and in processes that the test starts, also where the
    tests run in the background of a shell, which has its jobs ignore it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start_process(heeds_interrupts: None) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """subprocess.Popen, of text, with pipes for both outputs unless other ones are named; what
    still runs when the test ends, however it ends, is killed.
    """
    del heeds_interrupts
    started: list[subprocess.Popen[str]] = []

    def start(command: Sequence[object], **more: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([str(part) for part in command], **(pipes | more)))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=60)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a page holds. Raises AssertionError: a tag that is not closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def read(page: str) -> Page:
    """The page read, with no tag that fetches or runs anything, and no address but inside
    the page."""
    reader = Page(page)
    assert not set(reader.tags) & {"script", "link", "iframe", "object", "embed", "base", "form"}
    fetching = [value for name, value in reader.attributes if name in ("src", "href", "srcset")]
    assert all(value.startswith("#") for value in fetching)
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert any("default-src 'none'" in value for _, value in reader.attributes)
    return reader


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], Page]:
    """Reads an HTML page; one that would fetch or run anything fails the test."""
    return read
