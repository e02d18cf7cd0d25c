"""What a plan is made from: how much text, which models, what is stored, what is asked."""

from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.planning.flops import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The training data, in tokens: `trained` are read in all epochs, `unique` are there."""

    trained: float
    unique: float
    held_out: float
    window: float  # tokens of a row, on average: what the attention looks at, and a row of a cache

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
    endpoint: Endpoint | None = None
    prompt_share: float = 0.125  # of a text, what the teacher is given to go on from
    number_bytes: int = 2  # of the teacher's weights and hidden states as it runs: bfloat16
    draws: int = 1  # of a teacher cache: each stores every row once more
