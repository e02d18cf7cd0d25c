"""A mutant: one line of one file, changed, and the tests of which one must fail."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One line of one file, changed."""

    id: str
    what: str
    file: str  # below src/tutelage
    old: str  # the line without its indentation
    new: str
    oracles: tuple[str, ...]  # pytest node ids; one of them must fail
    after: str = ""  # where `old` occurs more than once: the first one below the line that starts like this

    @property
    def plain(self) -> bool:
        """Whether its oracles run with all loops as plain Python: compiled ones take up to half a minute anew."""
        return self.file.endswith("_cpu.py")
