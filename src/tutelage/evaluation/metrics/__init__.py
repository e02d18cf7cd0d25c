"""One file a metric: `measure(scores)` for comparisons, `compute(scores)` for its Estimate."""
