"""Evaluation: what was transferred, with intervals."""
