"""Fit a trained language model under a hard byte cap.

    from packer import PlanLimits, pack, plan
    weights = model.state_dict()
    limits = PlanLimits(16_000_000, code=["train_gpt.py"])
    packed = pack(weights, plan(weights, limits), out="model.pack")
    print(packed.account)

Weights are a state dict, a path, or whatever `packer` reads:

>>> import torch
>>> from packer import pack, plan, unpack
>>> weights = {"mlp.weight": torch.linspace(-1, 1, 6144).reshape(96, 64), "gain": torch.ones(64)}
>>> packed = pack(weights, plan(weights, 4000))
>>> packed.account.total_bytes <= 4000 and packed.account.total_bytes == len(packed.data)
True
>>> sorted(unpack(packed.data))
['gain', 'mlp.weight']
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packer.api import (
        Calibration,
        MeasureOptions,
        PlanLimits,
        calibrate,
        inspect,
        measure,
        pack,
        plan,
        plan_recipe,
        unpack,
        verify,
    )

__all__ = [
    "Calibration",
    "MeasureOptions",
    "PlanLimits",
    "calibrate",
    "inspect",
    "measure",
    "pack",
    "plan",
    "plan_recipe",
    "unpack",
    "verify",
]

# In a source checkout the leaf packages stand beside this folder; installed, they are inside it.
if not (Path(__file__).parent / "quantizers").is_dir():
    __path__.append(str(Path(__file__).parent.parent))


def __getattr__(name: str) -> Any:
    """The public functions and values, loaded on first use: importing torch takes a second."""
    if name in __all__:
        from packer import api

        return getattr(api, name)
    raise AttributeError(f"module 'packer' has no attribute {name!r}")
