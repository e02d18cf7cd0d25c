"""Drops answers that max_tokens cut."""

from tutelage.generation.select import Candidate, Judge


def build(complete: bool) -> Judge:
    """Drops them if `complete`, else keeps everything."""

    def judge(candidate: Candidate) -> str:
        return "cut by max_tokens" if complete and candidate.outcome == "truncated" else ""

    return judge
