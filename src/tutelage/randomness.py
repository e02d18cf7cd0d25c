"""Randomness is derived, never saved: every draw has a seed that is a pure function of what it is for.

A resumed run therefore draws what the uninterrupted run would have drawn, and one model's draws never shift
another's.  A seed is the SHA-256 of its fields, so that neither PYTHONHASHSEED nor the order of calls matters.
"""

import hashlib
import json

import numpy as np

SEED_BITS = 63  # torch.manual_seed takes a signed 64-bit integer


def derive_seed(run_seed: int, purpose: str, *fields: str | int) -> int:
    """A seed in [0, 2**63) for one purpose of one run; `fields` are e.g. step, model name, rank, row key."""
    canonical = json.dumps([run_seed, purpose, *fields], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(canonical).digest()[:8], "big") >> (64 - SEED_BITS)


def generator(run_seed: int, purpose: str, *fields: str | int) -> np.random.Generator:
    """A NumPy generator (Philox) seeded by `derive_seed`."""
    return np.random.Generator(np.random.Philox(derive_seed(run_seed, purpose, *fields)))
