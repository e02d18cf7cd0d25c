"""Drops answers that repeat themselves: sequences of words that stood in the same answer before."""

from tutelage.generation.select import Candidate, Judge
from tutelage.recipe.generation import Repetition


def build(settings: Repetition) -> Judge:
    """By the share of word sequences that are not the first of their kind."""

    def judge(candidate: Candidate) -> str:
        share = repeated_share(candidate.text, n_words=settings.words)
        return "repeats itself" if share > settings.most else ""

    return judge


def repeated_share(text: str, *, n_words: int) -> float:
    """Share of the sequences of `n_words` words that stood in the text before; 0 for a shorter text."""
    words = text.casefold().split()
    sequences = [tuple(words[i : i + n_words]) for i in range(len(words) - n_words + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0
