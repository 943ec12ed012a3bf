"""A model of transformers with the weights of a checkpoint: nothing downloaded, no code run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from packer.errors import CheckpointError, listed, reason
from packer.eval.errors import ModelError
from packer.eval.foreign_forward import Foreign
from packer.eval.foreign_weights import load_strictly
from packer.huggingface.configuration import RUNNING, Settings, refuse_unbuildable
from packer.huggingface.library import quietly, transformers_for
from packer.huggingface.weight_places import Placed, placed_by_trial


class CausalModel(Foreign):
    """Tokens int64 [batch, time] to logits [batch, time, vocab].

    longest_window: tokens that its configuration allows at once, None if it sets no limit.
    """

    def __init__(self, model: nn.Module, longest_window: int | None) -> None:
        super().__init__(model)
        self.longest_window = longest_window

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits

    def start(self, length: int) -> Any:
        """An empty cache for windows of `length` tokens."""
        del length
        from transformers import DynamicCache

        return DynamicCache()

    def next_logits(self, tokens: Tensor, past: Any) -> Tensor:
        """Logits [batch, vocab] after the last of tokens [batch, time]; adds them to `past`."""
        new = tokens[:, past.get_seq_length() :]
        logits: Tensor = self.model(input_ids=new, past_key_values=past, use_cache=True).logits
        return logits[:, -1]


def build_model(
    settings: Settings,
    where: str,
    weights: Mapping[str, Tensor],
    source: str,
    say: Callable[[str], None],
) -> CausalModel:
    """The causal language model of a configuration, in float32.

    where, source: files of the configuration and of the weights, for error messages. weights: by
    their names in the file, tied ones included if the file has them. say: called with a note on
    everything that was ignored.
    Raises CheckpointError: the installed library has no such model, or the weights are of another.
    """
    refuse_unbuildable(settings, where)
    library = transformers_for(where)
    with quietly(library):
        configuration = configuration_of(library, settings, where)
        model = built_by_library(library, configuration, where)
        names: Placed | None = None
        notes: tuple[str, ...] = ()
        try:
            fit = load_strictly(model, weights)
        except ModelError as error:
            model, names, notes = _converted(model, configuration, weights, source, where, error)
        else:
            notes = fit.notes
    for note in notes:
        say(note)
    causal = CausalModel(model.eval(), _longest_window(configuration))
    if names is not None:
        causal.named = names
    elif fit.names:
        causal.named = Placed.renamed(model, fit.names)
    return causal


def configuration_of(library: ModuleType, settings: Settings, where: str) -> Any:
    """The library's configuration, for computing in float32. Raises CheckpointError."""
    kind = settings["model_type"]
    plain = {key: value for key, value in settings.items() if key not in RUNNING}
    try:
        configuration = library.CONFIG_MAPPING[kind].from_dict(plain)
    except KeyError:
        raise CheckpointError(
            f"{where}: transformers {library.__version__} has no model {kind!r}; install a newer "
            "one, or name a class with --model"
        ) from None
    except Exception as error:  # a configuration class may raise anything
        raise CheckpointError(f"{where}: transformers refuses it ({reason(error)})") from None
    configuration._experts_implementation = "eager"  # matmuls that calibration can observe
    return configuration


def built_by_library(library: ModuleType, configuration: Any, where: str) -> nn.Module:
    """Its causal language model in float32, initialized. Raises CheckpointError."""
    try:
        with torch.random.fork_rng(devices=[]):
            model = library.AutoModelForCausalLM.from_config(configuration)
    except Exception as error:
        raise CheckpointError(
            f"{where}: transformers builds no causal language model of it ({reason(error)})"
        ) from None
    in_float32: nn.Module = model.float()
    return in_float32


def _converted(
    model: nn.Module,
    configuration: Any,
    weights: Mapping[str, Tensor],
    source: str,
    where: str,
    direct: ModelError,
) -> tuple[nn.Module, Placed, tuple[str, ...]]:
    """The model with weights that the library renames, joins or splits on loading, such as those of
    mixtures of experts; with their places in it.

    direct: why they do not fit unconverted. Raises CheckpointError: they do not fit converted.
    """
    loaded, lines = loaded_by_library(type(model), configuration, weights, torch.float32)
    if lines:
        direct_lines = str(direct).splitlines()[1:]
        fewest = min((direct_lines, lines), key=len)
        raise CheckpointError(
            f"{source}: is not the model of {where}, {len(fewest)} differences: "
            + listed([line.strip() for line in fewest])
        )
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}

    def load(numbers: Mapping[str, Tensor]) -> nn.Module:
        return loaded_by_library(type(model), configuration, numbers, torch.float64)[0]

    placed = placed_by_trial(loaded, shapes, load)
    notes = [f"transformers computes these from the file's: {listed(placed.lost)}"]
    return loaded, placed, tuple(notes if placed.lost else [])


def loaded_by_library(
    kind: Any, configuration: Any, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[nn.Module, list[str]]:
    """(a model of the class with these weights as transformers loads them, what does not fit)."""
    model, info = kind.from_pretrained(
        None,
        config=configuration,
        state_dict=dict(weights),
        dtype=dtype,
        local_files_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    lines = [f"missing: {name}" for name in sorted(info["missing_keys"])]
    lines += [f"not in the model: {name}" for name in sorted(info["unexpected_keys"])]
    lines += [
        f"{name} is {tuple(found)}, the model has {tuple(wanted)}"
        for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    return model, [*lines, *(str(line) for line in info["error_msgs"])]


def _longest_window(configuration: Any) -> int | None:
    longest = getattr(configuration, "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None
