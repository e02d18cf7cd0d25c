"""transformers without its progress bars and warnings; its errors are raised as ever."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# transformers imports torchao wherever it is installed, and that says which of its GPU kernels do not fit here;
# accelerate says of each model with parts on the disk that it has some.
for _noisy in ("torchao", "torch.utils._pytree", "accelerate.big_modeling"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Bars and warnings off for the body, then as they were."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as own_logging

    level, bars, hub_bars = (
        own_logging.get_verbosity(),
        own_logging.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
    )
    own_logging.set_verbosity_error()
    own_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        own_logging.set_verbosity(level)
        if bars:
            own_logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
