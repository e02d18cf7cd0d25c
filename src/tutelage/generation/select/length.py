"""Drops answers that are too short or too long, in characters."""

from tutelage.generation.select import Candidate, Judge
from tutelage.recipe.generation import Length


def build(settings: Length) -> Judge:
    """Both limits are allowed lengths."""

    def judge(candidate: Candidate) -> str:
        n = len(candidate.text)
        if n < settings.least:
            return "too short"
        return "too long" if settings.most is not None and n > settings.most else ""

    return judge
