"""Feature losses, a file each: what it compares inside student and teacher, and the sum over trained positions.

What a file holds:

- `PARTS`: of a layer, what is tapped on both sides (`types.Tap`); `EVERY_LAYER`: what `layers: auto` means, every
  layer of the student or its last alone.
- `settled(feature, own, teachers)`: the feature with everything chosen that follows from widths (`own`, `teachers`:
  of each tap), or ConfigError[FEATURES].  `learned` then holds the shapes of the matrices that are learned with the
  student and thrown away.
- `total(feature, own, teachers, *, view, learned)`: the sum over the view's N trained positions, 0-dim, float32 or
  wider, >= 0, with a graph to `own` and `learned`; both sides are [B, T, W] by tap.

Its name and the names of its fields stand in `losses/names.py`, the fields in `recipe/terms.py`.
"""
