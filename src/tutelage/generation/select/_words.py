"""The words of a text as two texts are compared by them: whatever case, punctuation, white space and Unicode form."""

import re
import unicodedata

_APOSTROPHES = re.compile("['\u2019\u02bc`]")
# A run of letters and digits; of the scripts that put no space between words, each character.
_WORD = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|"
                   "(?:(?![\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])[^\\W_])+")  # fmt: skip


def words_of(text: str) -> list[str]:
    """`It's  "ＴＷＯ"-fold` is its, two, fold."""
    return _WORD.findall(_APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold()))
