"""The names of the divergences and of their parameters, without importing torch: the recipe's list of options."""

DIVERGENCES: dict[str, tuple[str, ...]] = {
    "forward_kl": (),
    "reverse_kl": (),
    "jensen_shannon": ("beta",),
    "skew_kl": ("alpha",),
    "skew_reverse_kl": ("alpha",),
    "total_variation": (),
}
