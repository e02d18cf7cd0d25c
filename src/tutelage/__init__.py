"""Tutelage: LLM distillation by every technique, measured."""
