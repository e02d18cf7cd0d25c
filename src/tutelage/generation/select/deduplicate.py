"""Drops an answer to the same prompt that an earlier one equals but for case and white space."""

import hashlib

from tutelage.generation.select import Candidate, Judge, folded


def build(deduplicate: bool) -> Judge:
    """The first of equal ones stays; only hashes are remembered."""
    seen: set[bytes] = set()

    def judge(candidate: Candidate) -> str:
        digest = hashlib.sha256(repr([folded(text) for text in (*candidate.asked, candidate.text)]).encode()).digest()
        if digest in seen:
            return "equals an earlier answer"
        seen.add(digest)
        return ""

    return judge
