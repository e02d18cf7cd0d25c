"""What a described machine does in a second: makers' figures, and the share of them that a run gets.

The peaks are dense products in bfloat16 (float16 where a device has no bfloat16) with float32 sums, as the makers'
data sheets give them.  A run gets a part of them: the shares below are what well-made training and scoring reach on one
device (model FLOPs utilisation, arXiv:2204.02311), an assumption that `--utilisation` replaces.
"""

import difflib
from dataclasses import dataclass

from tutelage.errors import ConfigError

TRAINING_SHARE, FORWARD_SHARE = 0.35, 0.45
WRITING_SHARE = 0.05  # one token after the other: bound by memory, not by products


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator."""

    name: str
    peak_flops: float
    memory_bytes: float


DEVICES = {
    "a10": Device(name="NVIDIA A10", peak_flops=125e12, memory_bytes=24e9),
    "a100": Device(name="NVIDIA A100 80 GB", peak_flops=312e12, memory_bytes=80e9),
    "a100-40": Device(name="NVIDIA A100 40 GB", peak_flops=312e12, memory_bytes=40e9),
    "b200": Device(name="NVIDIA B200", peak_flops=2250e12, memory_bytes=180e9),
    "h100": Device(name="NVIDIA H100 SXM", peak_flops=989e12, memory_bytes=80e9),
    "h200": Device(name="NVIDIA H200", peak_flops=989e12, memory_bytes=141e9),
    "l4": Device(name="NVIDIA L4", peak_flops=121e12, memory_bytes=24e9),
    "l40s": Device(name="NVIDIA L40S", peak_flops=362e12, memory_bytes=48e9),
    "mi300x": Device(name="AMD MI300X", peak_flops=1307e12, memory_bytes=192e9),
    "rtx-3090": Device(name="NVIDIA RTX 3090", peak_flops=71e12, memory_bytes=24e9),
    "rtx-4090": Device(name="NVIDIA RTX 4090", peak_flops=165e12, memory_bytes=24e9),
    "t4": Device(name="NVIDIA T4", peak_flops=65e12, memory_bytes=16e9),
    "v100": Device(name="NVIDIA V100 32 GB", peak_flops=125e12, memory_bytes=32e9),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Some devices of one kind; `price_usd` is what one costs an hour, None when nobody said."""

    device: Device
    count: int = 1
    price_usd: float | None = None
    utilisation: float | None = None  # of training; None: TRAINING_SHARE

    @property
    def scale(self) -> float:
        """How much better than assumed the devices are used."""
        return 1.0 if self.utilisation is None else self.utilisation / TRAINING_SHARE


def device_of(name: str) -> Device:
    """A device by name; ConfigError[CONFIG] with the nearest name and the way to describe another."""
    key = name.lower().replace("_", "-")
    if key not in DEVICES:
        near = difflib.get_close_matches(key, DEVICES, n=1)
        hint = f" ({near[0]}?)" if near else ""
        raise ConfigError(
            "CONFIG",
            f"--gpu: '{name}' unknown{hint}; known: {', '.join(DEVICES)}; of another give its figures: "
            "--flops 400e12 --memory 48e9",
        )
    return DEVICES[key]
