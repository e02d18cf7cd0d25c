"""A model in another dtype, as if it had been loaded in it."""

import torch

from tutelage.types import CausalLM


def cast(model: CausalLM, dtype: torch.dtype, *, device: torch.device | str | None = None) -> CausalLM:
    """`model` itself, its weights in `dtype`; tables that are no weights (rotary frequencies) keep their own dtype.

    `model.to(bfloat16)` would round those too: an error of up to 0.2 % of every angle, a radian at position 500, that
    no model loaded in bfloat16 has.  Mixtures compute float64 expert by expert: torch groups their products in narrower
    formats only.
    """
    if dtype == torch.float64 and model.get_experts_implementation()[""] is not None:
        model.set_experts_implementation("eager")
    weights = model.state_dict().keys()
    tables = {name: table for name, table in model.named_buffers(remove_duplicate=False) if name not in weights}
    model.to(device=device, dtype=dtype)
    for name, table in tables.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, table.to(device=device))
    return model
