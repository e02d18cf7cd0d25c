"""Drops answers in other languages, by py3langid's model; what is too short or uncertain stays, and is counted."""

import difflib
import functools
from typing import Any

from tutelage.errors import ConfigError
from tutelage.generation.select import Candidate, Judge, Said, Verdict
from tutelage.recipe.generation import Language

LEAST_BYTES = 20  # of letters in UTF-8: less is too short to tell
_NO_LANGUAGE = "zxx"


def build(settings: Language) -> Judge:
    """ConfigError for a code that is none."""
    identifier = _identifier()
    known = sorted(set(identifier.labels) - {_NO_LANGUAGE})
    for code in settings.only:
        if code not in known:
            near = difflib.get_close_matches(code.lower()[:2], known, n=1)
            hint = f" ({near[0]}?)" if near else ""
            found = f"generate.select: language {code!r} is no code of ISO 639 that is known{hint}"
            raise ConfigError("CONFIG", f"{found}; known: {', '.join(known)}")

    def judge(candidate: Candidate) -> Said:
        letters = "".join(character for character in candidate.text if character.isalpha())
        if len(letters.encode()) < LEAST_BYTES:
            return Verdict(why="too short to tell", is_kept=True)
        language, share = identifier.classify(candidate.text)
        if language in settings.only:
            return ""
        if language == _NO_LANGUAGE or share < settings.certain:
            return Verdict(why="uncertain", is_kept=True)
        return Verdict(why=f"is in {language}", about=f"probability {share:.2f}")

    return judge


@functools.cache
def _identifier() -> Any:  # a module without types; reading its model takes a second
    try:
        from py3langid import langid
    except ImportError:
        found = "generate.select: language needs py3langid"
        raise ConfigError("MISSING_EXTRA", f'{found}; run: pip install "tutelage[text]"') from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
