"""What a plan is made from: how much text, which models, what is stored, what is asked."""

from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.planning.flops import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The training data, in tokens: `trained` are computed in all epochs, `unique` are there.

    Of answers a part is learned, and stored in a cache: `trained_share`.
    """

    trained: float
    unique: float
    held_out: float
    window: float  # tokens of a row, on average: what the attention looks at, and a row of a cache
    trained_share: float = 1.0
    written_share: float | None = None  # of answers to come: what a teacher is to write; None: see `prompt_share`

    @property
    def learned(self) -> float:
        """Of the tokens that are there, those that are learned: the positions of a cache."""
        return self.unique * self.trained_share

    @property
    def row_positions(self) -> float:
        """Positions of a row of a cache, on average."""
        return self.window * self.trained_share

    @property
    def epochs(self) -> float:
        """How often each token is read."""
        return self.trained / self.unique if self.unique else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A teacher that is not here: it gives text, for a price, and perhaps the log-probabilities of a few tokens."""

    top_logprobs: int = 0
    usd_per_prompt_token: float | None = None
    usd_per_answer_token: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One plan's numbers; `teacher` None and `endpoint` None: there is no teacher."""

    text: Text
    students: Mapping[str, Size]
    teacher: Size | None = None
    members: int = 1  # teachers whose answers are averaged; `teacher` is all of them together
    teacher_is_new: bool = False  # it has to be trained from nothing
    endpoint: Endpoint | None = None
    prompt_share: float = 0.125  # of a text, what the teacher is given to go on from
    number_bytes: int = 2  # of the teacher's weights and hidden states as it runs: bfloat16
    draws: int = 1  # of a teacher cache: each stores every row once more
    caches_run: bool = False  # a teacher cache holds the rows that the run reads, not all of them
    compares_layers: bool = False  # a term of the loss has features
