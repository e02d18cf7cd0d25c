"""The names of the divergences and of their parameters, without importing torch: the recipe's list of options.

Those of the feature losses too, which are files of `losses/features`.
"""

DIVERGENCES: dict[str, tuple[str, ...]] = {
    "forward_kl": (),
    "reverse_kl": (),
    "jensen_shannon": ("beta",),
    "skew_kl": ("alpha",),
    "skew_reverse_kl": ("alpha",),
    "total_variation": (),
}
FEATURES: dict[str, tuple[str, ...]] = {
    "attention_relations": ("relation_heads",),
    "hidden_states": ("distance", "projection"),
}
