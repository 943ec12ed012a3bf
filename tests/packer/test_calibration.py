"""Curvature of models, against moments and gradients computed one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packer.eval.damage import kronecker_nats
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import FormatError
from packer.train.model import GPT, GPTConfig
from torch import Tensor, nn

import packer.curvature.calibration
import packer.curvature.resume
from packer.checkpoint.checkpoint import from_state_dict
from packer.curvature.calibration import calibrate
from packer.curvature.file import StoredCurvature, read_curvature, write_curvature
from packer.curvature.moments import MapMoments
from packer.curvature.resume import ResumeFile
from packer.curvature.sampled_labels import gradient_of_sampled_labels
from packer.curvature.triangles import gram, symmetric, triangle_size
from packer.curvature.windows import token_batches, window_starts
from packer.errors import CurvatureError

VOCAB, WIDTH, HIDDEN = 7, 4, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 2


class Banked(nn.Module):
    """Banks sliced and cast at use, a tied head, a lookup by index, a factor x @ W, a scale."""

    def __init__(self, recurrences: int = 1) -> None:
        super().__init__()
        self.recurrences = recurrences
        self.table = nn.Parameter(normal(VOCAB, WIDTH))
        self.up = nn.Parameter(normal(2, HIDDEN, WIDTH, seed=1).half())
        self.down = nn.Parameter(normal(2, HIDDEN, WIDTH, seed=2))
        self.scale = nn.Parameter(1 + normal(WIDTH, seed=3))
        self.idle = nn.Parameter(normal(80, 80, seed=4))

    def layers(self) -> list[int]:
        return [0] + [1] * self.recurrences

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table[tokens]
        for layer in self.layers():
            hidden = torch.tanh(F.linear(x, self.up[layer].to(x.dtype)))
            x = x + hidden @ self.down[layer]
        return F.linear(x * self.scale, self.table)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, VOCAB, (600, 5), generator=torch.Generator().manual_seed(9))


def observed(model: Banked, tokens: Tensor) -> dict[str, list[Tensor]]:
    """Inputs of every use, computed by hand."""
    found: dict[str, list[Tensor]] = {"up": [], "down": []}
    x = model.table[tokens]
    for layer in model.layers():
        found["up"].append(x.reshape(-1, WIDTH))
        hidden = torch.tanh(x @ model.up[layer].float().mT)
        found["down"].append(hidden.reshape(-1, HIDDEN))
        x = x + hidden @ model.down[layer]
    found["table"] = [(x * model.scale).reshape(-1, WIDTH)]
    return {name: [x.detach() for x in uses] for name, uses in found.items()}


def test_inputs_of_banked_sliced_and_cast_weights(tokens: Tensor) -> None:
    model = Banked()
    found = calibrate(model, [tokens])
    inputs = observed(model, tokens)
    up, head = found.by_tensor["up"], found.by_tensor["table"]
    for layer in (0, 1):
        x = inputs["up"][layer]
        torch.testing.assert_close(up.hessian[layer], x.mT @ x / len(x), rtol=1e-4, atol=1e-5)
    x = inputs["table"][0]
    torch.testing.assert_close(head.hessian, x.mT @ x / len(x), rtol=1e-4, atol=1e-5)
    # The rows of x @ W are its inputs: their energies, weighted by the gradient.
    rows = found.by_tensor["down"].fisher
    assert rows is not None
    for layer, x in enumerate(inputs["down"]):
        mean = x.square().mean(dim=0)
        torch.testing.assert_close(
            rows[layer * HIDDEN : (layer + 1) * HIDDEN], mean, rtol=0.3, atol=0.02
        )
    assert found.tokens == tokens.numel()
    assert found.unreached == ("idle",)
    assert any("idle" in text and "nothing is known" in text for text in found.warnings)


def test_predicted_curvature_is_that_of_the_true_divergence(tokens: Tensor) -> None:
    """½ Σ fisher · Δ H Δᵀ against the KL of slightly changed weights, one weight at a time."""
    model = Banked().requires_grad_(False)
    found = calibrate(model, tokens.split(5), seed=1)
    with torch.no_grad():
        before = torch.log_softmax(model(tokens), dim=-1)
        for name in ("up", "down", "scale"):
            weight = getattr(model, name)
            kept, measured, predicted = weight.clone(), 0.0, 0.0
            for draw in range(40):  # the diagonal of the Fisher is right on average over changes
                weight += 0.02 * normal(*weight.shape, seed=draw)
                after = torch.log_softmax(model(tokens), dim=-1)
                measured += float((before.exp() * (before - after)).sum(-1).mean())
                predicted += half_form(found.by_tensor[name], (weight - kept).float())
                weight.copy_(kept)
            assert predicted == pytest.approx(measured, rel=0.3), name
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_outputs_know_which_changes_cancel(tokens: Tensor) -> None:
    """Softmax does not feel a shift of all logits: the whole moment of outputs says so, its
    diagonal does not.
    """
    model = nn.Sequential(
        nn.Embedding.from_pretrained(normal(VOCAB, WIDTH)), nn.Linear(WIDTH, VOCAB)
    )
    head = calibrate(model, [tokens]).by_tensor["1.weight"]
    assert head.outputs is not None and head.fisher is not None
    torch.testing.assert_close(head.outputs.diagonal(), head.fisher, rtol=0.2, atol=1e-3)
    shift = normal(1, WIDTH).expand(VOCAB, WIDTH)
    apart = half_form(head, shift)
    assert kronecker_nats(shift, head.hessian, head.outputs[None]) < 1e-4 * apart
    assert head.row_factors is not None
    drawn = kronecker_nats(shift, head.hessian, head.row_factors)
    assert drawn == pytest.approx(0.33 * apart, rel=0.1)  # and 0.03 for every row
    other = normal(VOCAB, WIDTH, seed=5)
    assert kronecker_nats(other, head.hessian, head.row_factors) == pytest.approx(
        half_form(head, other), rel=0.3
    )


def test_outputs_of_banks_are_kept_bank_by_bank(tokens: Tensor) -> None:
    found = calibrate(Banked(), [tokens]).by_tensor
    up = found["up"]
    assert up.outputs is not None and up.outputs.shape == (2, HIDDEN, HIDDEN)
    inputs = observed(Banked(), tokens)["down"]
    down = found["down"].outputs
    assert down is not None
    for bank, x in enumerate(inputs):  # rows of x @ W are inputs, weighted by the gradient
        moment = x.mT @ x / len(x)
        cosine = (moment * down[bank]).sum() / moment.norm() / down[bank].norm()
        assert float(cosine) > 0.97


def half_form(curvature: Curvature, change: Tensor) -> float:
    assert curvature.fisher is not None
    banks = curvature.hessian.reshape(-1, curvature.columns, curvature.columns)
    rows = change.reshape(len(banks), -1, curvature.columns)
    forms = torch.einsum("bri,bij,brj->br", rows, banks, rows).flatten()
    return 0.5 * float((curvature.fisher * forms).sum())


def test_a_weight_used_several_times_sums_its_uses(tokens: Tensor) -> None:
    """The middle layer three times, against the same computation unrolled into three layers."""
    model = Banked(recurrences=3)
    found = calibrate(model, [tokens]).by_tensor["up"]
    expected = sum(x.mT @ x / len(x) for x in observed(model, tokens)["up"][1:])
    torch.testing.assert_close(found.hessian[1], expected, rtol=1e-4, atol=1e-5)


def test_slices_of_one_weight_do_not_count_as_several_uses(tokens: Tensor) -> None:
    class Fused(nn.Module):
        def __init__(self, apart: bool) -> None:
            super().__init__()
            self.apart = apart
            self.embed = nn.Embedding.from_pretrained(normal(VOCAB, WIDTH))
            self.qkv = nn.Parameter(normal(3 * WIDTH, WIDTH, seed=1))
            self.head = nn.Linear(WIDTH, VOCAB)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            if self.apart:
                q, k, v = (F.linear(x, part) for part in self.qkv.chunk(3))
            else:
                q, k, v = F.linear(x, self.qkv).chunk(3, dim=-1)
            return self.head(q * k + v)

    torch.manual_seed(0)
    together = Fused(False)
    apart = Fused(True)
    apart.load_state_dict(together.state_dict())
    one, other = (calibrate(model, [tokens]).by_tensor["qkv"] for model in (together, apart))
    torch.testing.assert_close(one.hessian, other.hessian)
    assert one.fisher is not None and other.fisher is not None
    torch.testing.assert_close(one.fisher, other.fisher, rtol=1e-4, atol=1e-6)


def test_a_tied_embedding_is_a_head_and_a_table(tokens: Tensor) -> None:
    ids = tokens.clamp(max=VOCAB - 2)  # the last row is never read
    found = calibrate(Banked(), [ids]).by_tensor["table"]
    usage = torch.bincount(ids.flatten(), minlength=VOCAB) / ids.numel()
    assert found.row_usage is not None and found.lookup is not None
    torch.testing.assert_close(found.row_usage, usage)
    shares = found.lookup.fisher
    assert shares is not None and shares.sum() == pytest.approx(1)
    assert 0 < shares[-1] < 0.01 * shares.max()
    assert found.fisher is not None and found.lookup.row_usage is not None


def test_the_companion_model_is_covered() -> None:
    torch.manual_seed(0)
    config = GPTConfig(
        32, 2, 16, 2, 1, smear_gate=True, bigram_vocab_size=16, bigram_dim=8,
        value_embedding_dim=8, value_embedding_layers=(1,), embedding_init_std=0.5,
    )  # fmt: skip
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    batches = token_batches(torch.arange(400).numpy() % 32, 20, 400, torch.device("cpu"))
    found = calibrate(model, batches)
    assert set(found.by_tensor) == set(model.state_dict())
    assert found.unreached == ()
    assert all(one.fisher is not None for one in found.by_tensor.values())
    assert found.by_tensor["bigram.embed.weight"].row_usage is not None


def test_the_model_is_left_as_it_was(tokens: Tensor) -> None:
    model = Banked().train()
    model.scale.requires_grad_(False)
    model.up.grad = torch.ones_like(model.up)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(model, [tokens[:20]])
    assert model.training and not model.scale.requires_grad and model.up.requires_grad
    assert model.table.grad is None and torch.equal(model.up.grad, torch.ones_like(model.up))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_equal_seeds_give_equal_curvature(tokens: Tensor) -> None:
    one, again, other = (calibrate(Banked(), [tokens[:50]], seed=s) for s in (3, 3, 4))
    assert one.sha256 == again.sha256 != other.sha256


def test_time_is_a_hard_limit(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of which every forward takes 0.4 s, so that a slow machine changes nothing."""
    now = [0.0]

    class Slow(Banked):
        def forward(self, ids: Tensor) -> Tensor:
            now[0] += 0.4
            return super().forward(ids)

    monkeypatch.setattr(packer.curvature.calibration.time, "perf_counter", lambda: now[0])
    found = calibrate(Slow(), tokens.split(50), seconds=3.0)
    assert found.seconds == pytest.approx(2.8)
    assert found.tokens == 7 * 50 * tokens.size(1)
    with pytest.raises(CurvatureError, match=r"within 0\.3 seconds; allow more"):
        calibrate(Slow(), [tokens[:0]], seconds=0.3)


class Stalling(Banked):
    """On a clock of which a layer takes 0.2 s, and in the batch `stalls` each takes far more."""

    def __init__(self, now: list[float], stalls: int) -> None:
        super().__init__()
        self.now, self.stalls, self.seen = now, stalls, 0

    def forward(self, ids: Tensor) -> Tensor:
        self.seen += 1
        self.now[0] += 8.0 if self.seen == self.stalls else 0.4
        return super().forward(ids)


def test_a_batch_that_takes_longer_than_those_before_it_is_left_out(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(packer.curvature.calibration.time, "perf_counter", lambda: now[0])
    batches = tokens.split(50)
    found = calibrate(Stalling(now, stalls=6), batches, seconds=3.0)
    assert found.tokens == 5 * batches[0].numel()
    whole = calibrate(Stalling(now, stalls=0), batches[:5])
    assert whole.by_tensor.keys() == found.by_tensor.keys()
    for name, one in whole.by_tensor.items():
        assert torch.equal(one.hessian, found.by_tensor[name].hessian)


def test_where_the_first_batch_takes_too_long_nothing_is_read(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(packer.curvature.calibration.time, "perf_counter", lambda: now[0])
    with pytest.raises(CurvatureError, match=r"within 3 seconds.*not ended after 8\), or"):
        calibrate(Stalling(now, stalls=1), tokens.split(50), seconds=3.0)


def test_few_tokens_are_warned_of_with_the_rank(tokens: Tensor) -> None:
    found = calibrate(Banked(), [tokens[:1, :3]])
    assert any("rank 3 at most" in text for text in found.warnings)


def test_bad_models_and_batches_are_refused(tokens: Tensor) -> None:
    broken = Banked()
    broken.scale.data[0] = float("inf")
    state = from_state_dict(Banked().state_dict())
    with pytest.raises(CurvatureError, match="not finite"):
        calibrate(broken, [tokens], checkpoint=state)
    with pytest.raises(CurvatureError, match=r"integer tokens \[windows, time\]"):
        calibrate(Banked(), [tokens.float()])
    with pytest.raises(CurvatureError, match="no batch"):
        calibrate(Banked(), [])
    with pytest.raises(CurvatureError, match="longer than the 10 tokens"):
        token_batches(torch.arange(10).numpy(), 16, 100, torch.device("cpu"))


@pytest.mark.parametrize(
    ("count", "width", "start", "columns"), [(9, 300, 0, 300), (9, 300, 100, 90)]
)
def test_a_triangle_is_the_matrix(count: int, width: int, start: int, columns: int) -> None:
    vectors = normal(count, columns)
    whole = torch.zeros(count, width)
    whole[:, start : start + columns] = vectors
    triangle = gram(vectors, width, start)
    assert triangle.shape == (triangle_size(width),) and len(triangle) < 0.75 * width**2
    matrix = symmetric(triangle, width)
    assert torch.equal(matrix, matrix.mT)
    torch.testing.assert_close(matrix, whole.mT @ whole, rtol=1e-5, atol=1e-5)


class Branching(nn.Module):
    """Two maps of one input; the second is left out on batches that begin with token 0."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(normal(VOCAB, WIDTH))
        self.first = nn.Parameter(normal(VOCAB, WIDTH, seed=1))
        self.second = nn.Parameter(normal(VOCAB, WIDTH, seed=2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table[tokens]
        logits = F.linear(x, self.first)
        return logits if int(tokens[0, 0]) == 0 else logits + F.linear(x, self.second)


def test_maps_of_one_input_share_its_moment_only_while_both_use_it(tokens: Tensor) -> None:
    model = Branching()
    ordered = tokens[tokens[:, 0].argsort()]
    batches = ordered.split(20)
    found = calibrate(model, batches)
    for name, read in (("first", batches), ("second", [b for b in batches if b[0, 0] != 0])):
        x = model.table[torch.cat(list(read))].detach().reshape(-1, WIDTH)
        expected = x.mT @ x / tokens.numel()
        torch.testing.assert_close(found.by_tensor[name].hessian, expected, rtol=1e-4, atol=1e-5)
    both = calibrate(model, [b for b in batches if b[0, 0] != 0])
    stored = both.by_tensor
    assert isinstance(stored, StoredCurvature)
    assert stored.shared["second/hessian.lower"] == "first/hessian.lower"


def test_labels_follow_the_predictions_and_are_never_impossible() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -math.inf]).expand(40, 100, 4)
    gradient = gradient_of_sampled_labels(logits, torch.Generator().manual_seed(0))
    probabilities = torch.softmax(logits, -1)
    labels = probabilities - gradient
    assert torch.equal(labels.round(), (labels > 0.5).float()) and not labels[..., 3].any()
    torch.testing.assert_close(labels.mean((0, 1)), probabilities[0, 0], rtol=0, atol=0.03)


def test_windows_are_spread_over_a_text() -> None:
    assert window_starts(4, 10, 100) == [7, 32, 57, 82]
    assert window_starts(4, 10, 40) == window_starts(4, 10, 0) == [0, 10, 20, 30]
    assert window_starts(1, 10, 100) == [45]
    (batch,) = token_batches(torch.arange(1000).numpy(), 10, 45, torch.device("cpu"), 100)
    assert batch[:, 0].tolist() == [7, 32, 57, 82] and batch[1, -1] == 41


def test_without_gradients_inputs_are_still_known(tokens: Tensor) -> None:
    class Frozen(Banked):
        @torch.no_grad()
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids)

    found = calibrate(Frozen(), [tokens])
    torch.testing.assert_close(
        found.by_tensor["up"].hessian, calibrate(Banked(), [tokens]).by_tensor["up"].hessian
    )
    assert found.by_tensor["up"].fisher is None
    assert any("no gradient" in text for text in found.warnings)


Spoil = Callable[[dict[str, Tensor]], None]


def test_the_file_holds_what_was_found(tmp_path: Path, tokens: Tensor) -> None:
    model = Banked()
    found = calibrate(model, [tokens[:50]])
    write_curvature(tmp_path / "c.safetensors", found)
    read = read_curvature(tmp_path / "c.safetensors", from_state_dict(model.state_dict()))
    assert read.sha256 == found.sha256
    assert read.provenance() == found.provenance()
    assert read.by_tensor["table"].lookup is not None


def test_batches_that_come_only_once_are_all_read(tokens: Tensor) -> None:
    batches = tokens[:50].split(10)
    found = calibrate(Banked(), iter(batches))
    assert found.tokens == 250
    assert found.sha256 == calibrate(Banked(), batches).sha256


def test_curvature_of_another_checkpoint_is_refused(tmp_path: Path, tokens: Tensor) -> None:
    model = Banked()
    write_curvature(tmp_path / "c.safetensors", calibrate(model, [tokens[:50]]))
    model.scale.data += 1
    with pytest.raises(CurvatureError, match="contents"):
        read_curvature(tmp_path / "c.safetensors", from_state_dict(model.state_dict()))


def test_damaged_files_are_refused(tmp_path: Path, tokens: Tensor) -> None:
    model, path = Banked(), tmp_path / "c.safetensors"
    state = from_state_dict(model.state_dict())
    write_curvature(path, calibrate(model, [tokens[:50]]))
    whole = path.read_bytes()
    for data in (whole[:-100], whole[:40], b"", b"\xff" * 8 + whole[8:], b"{}"):
        path.write_bytes(data)
        with pytest.raises(CurvatureError):
            read_curvature(path, state)
    torch.save(model.state_dict(), tmp_path / "c.pt")
    with pytest.raises(CurvatureError, match="no curvature file"):
        read_curvature(tmp_path / "c.pt", state)
    with pytest.raises(CurvatureError):
        read_curvature(tmp_path / "none", state)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda h: h.fill_(float("nan")), "up: hessian has values that are not finite"),
        (lambda h: h[0, 0, 1].add_(5), "up: hessian is not symmetric"),
        (lambda h: h[0, 0, 0].fill_(-1), "up: hessian has -1 on its diagonal"),
    ],
)
def test_spoilt_values_are_refused_by_name(
    tmp_path: Path, tokens: Tensor, spoil: Callable[[Tensor], Tensor], said: str
) -> None:
    model, path = Banked(), tmp_path / "c.safetensors"
    found = calibrate(model, [tokens[:50]])
    by_tensor = dict(found.by_tensor)
    spoil(by_tensor["up"].hessian)
    write_curvature(path, replace(found, by_tensor=by_tensor))
    with pytest.raises(CurvatureError, match=said):
        read_curvature(path, from_state_dict(model.state_dict()))


@pytest.mark.parametrize(
    ("hessian", "fisher", "said"),
    [
        (torch.eye(3, dtype=torch.float64), None, "float32"),
        (torch.ones(2, 3), None, r"\[columns, columns\] is wanted"),
        (torch.zeros(0, 0), None, "empty"),
        (torch.eye(3), -torch.ones(4), "fisher has values that are negative"),
        (torch.eye(3), torch.ones(4, 1), r"float32 \[rows\] is wanted"),
        (torch.eye(3).repeat(2, 1, 1), torch.ones(5), "2 banks cannot share"),
    ],
)
def test_curvature_is_checked_at_construction(
    hessian: Tensor, fisher: Tensor | None, said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        Curvature(hessian, fisher, 10)
    with pytest.raises(FormatError, match="0 tokens"):
        Curvature(torch.eye(3), None, 0)


def test_curvature_knows_which_weights_it_fits() -> None:
    bank = Curvature(torch.eye(3).repeat(2, 1, 1), torch.ones(8), 10)
    bank.check_shape((2, 4, 3))
    for shape, said in (((2, 4, 4), "3 wide"), ((4, 2, 3), "2 banks"), ((2, 5, 3), "8 rows")):
        with pytest.raises(FormatError, match=said):
            bank.check_shape(shape)


class CutOff(list[Tensor]):
    """Batches that are cut off before one of them, as Ctrl-C would, and counted."""

    def __init__(self, batches: list[Tensor], before: int | None = None) -> None:
        super().__init__(batches)
        self.before = before

    def __iter__(self) -> Iterator[Tensor]:
        for number, batch in enumerate(super().__iter__()):
            if number == self.before:
                raise KeyboardInterrupt
            yield batch


@pytest.fixture
def kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer.curvature.resume, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(packer.curvature.resume, "COST_SHARE", 1e9)


@pytest.mark.usefixtures("kept_at_once")
def test_a_calibration_that_was_cut_off_goes_on_to_the_same_values(
    tokens: Tensor, tmp_path: Path
) -> None:
    model, batches = Banked(), list(torch.split(tokens, 100))
    whole = calibrate(model, batches)
    file = ResumeFile(tmp_path / "c.partial", {"text": "one"})
    for before in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, CutOff(batches, before), resume_file=file)
        kept = file.read()
        assert kept is not None and kept.batches == before and kept.tokens == before * 500
    again = calibrate(model, batches, resume_file=file)
    assert again.sha256 == whole.sha256 and again.tokens == whole.tokens
    assert again.seconds >= kept.seconds
    finished = file.read()
    assert finished is not None and finished.batches == len(batches)
    assert calibrate(model, batches, resume_file=file).sha256 == whole.sha256


@pytest.mark.usefixtures("kept_at_once")
def test_what_another_calibration_left_is_refused(tokens: Tensor, tmp_path: Path) -> None:
    path, batches = tmp_path / "c.partial", list(torch.split(tokens, 300))
    calibrate(Banked(), batches, resume_file=ResumeFile(path, {"--seed": "0"}))
    with pytest.raises(CurvatureError, match=r"c\.partial is .* with another --seed"):
        ResumeFile(path, {"--seed": "1"}).read()
    with pytest.raises(CurvatureError, match="damaged: there is no sum 'inputs/hessian/down'"):
        calibrate(
            nn.Sequential(nn.Embedding(VOCAB, VOCAB)),
            batches,
            resume_file=ResumeFile(path, {"--seed": "0"}),
        )
    whole = path.read_bytes()
    for bad in (b"", whole[:200], whole[: len(whole) // 2], b"{" * 5000):
        path.write_bytes(bad)
        with pytest.raises(CurvatureError, match=r"Remove it to start anew"):
            ResumeFile(path, {"--seed": "0"}).read()
    write_curvature(path, calibrate(Banked(), batches))
    with pytest.raises(CurvatureError, match="is no unfinished calibration"):
        ResumeFile(path, {"--seed": "0"}).read()


def test_results_that_take_long_are_part_of_the_limit(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of which a forward takes 0.4 s and each second moment's result as much."""
    now = [0.0]
    monkeypatch.setattr(packer.curvature.calibration.time, "perf_counter", lambda: now[0])
    original = MapMoments.curvature

    def slow(self: MapMoments, *arguments: Any) -> Curvature:
        now[0] += 0.4
        return original(self, *arguments)

    monkeypatch.setattr(MapMoments, "curvature", slow)
    batches = tokens.split(50)
    found = calibrate(Stalling(now, stalls=0), batches, seconds=5.0)
    assert 2 * batches[0].numel() < found.tokens < tokens.numel() and now[0] <= 5.0
    now[0] = 0.0
    with pytest.raises(CurvatureError, match=r"with its results takes .* and 1 are allowed"):
        calibrate(Stalling(now, stalls=0), batches, seconds=1.0)
    assert now[0] <= 1.0, "it is refused before the time is up"
