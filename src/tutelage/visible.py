r"""Model text made safe and readable: what would steer a terminal or a page is shown as an escape.

Control, format (bidirectional overrides, zero width), surrogate, private and unassigned characters become `\xNN`,
`\uNNNN` or `\UNNNNNNNN`.  Every text of a model passes here before it is shown; data files keep the raw text.
"""

import unicodedata

SPACE = "␣"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def text(raw: str) -> str:
    """A passage: line ends stay, tabs become four spaces, the rest of what is invisible is escaped."""
    return "".join(c if c == "\n" else "    " if c == "\t" else _visible(c) for c in raw)


def line(raw: str) -> str:
    """The same on one line: line ends and tabs are escaped too."""
    return "".join(map(_visible, raw))


def token(raw: str) -> str:
    r"""One token, unmistakable: spaces as ␣, a backslash doubled, an empty token as ∅."""
    return "".join(SPACE if c == " " else "\\\\" if c == "\\" else _visible(c) for c in raw) or "∅"


def counted(n: int, noun: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _visible(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    hidden = unicodedata.category(character) in _HIDDEN
    if not hidden and (character == " " or not character.isspace()):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
