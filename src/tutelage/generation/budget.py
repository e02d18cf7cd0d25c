"""The hard cap: money is put aside, durably, before a request is sent, and settled when its reply is known.

What a request can cost at most is known without a tokenizer: a token is at least one byte of UTF-8, so its prompt has
at most as many tokens as bytes, and a template adds at most `ALLOWANCE` a message; the answer has at most `max_tokens`.
What was sent and never answered may have been paid: it stays spent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from tutelage.errors import LimitError
from tutelage.generation.ledger import PICO, Ledger

ALLOWANCE = 64  # tokens that a chat template may add: for each message, and once
_MOST_TOKENS = 10**9  # a usage beyond this is no count


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Picodollars a token."""

    prompt: int
    answer: int

    @staticmethod
    def of(*, prompt_usd: float, answer_usd: float) -> "Price":
        """From dollars per million tokens."""
        return Price(prompt=_per_token(prompt_usd), answer=_per_token(answer_usd))

    def as_json(self) -> list[int]:
        """As a journal holds it."""
        return [self.prompt, self.answer]


def _per_token(usd_per_million: float) -> int:
    pico = Decimal(str(usd_per_million)) * PICO / 10**6
    return int(pico.to_integral_value(rounding="ROUND_CEILING"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that the endpoint says it counted."""

    prompt: int
    answer: int

    @staticmethod
    def of(value: object) -> "Usage | None":
        """From the `usage` of a reply; None when it is missing or no count."""
        if not isinstance(value, dict):
            return None
        prompt, answer = value.get("prompt_tokens"), value.get("completion_tokens")
        if type(prompt) is not int or type(answer) is not int or min(prompt, answer) < 0:
            return None
        return Usage(prompt=prompt, answer=answer) if max(prompt, answer) <= _MOST_TOKENS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The caps over a ledger: dollars with a price, requests, or both."""

    price: Price | None = None
    cap: int | None = None  # picodollars
    max_requests: int | None = None

    def most(self, texts: Sequence[str], *, max_tokens: int) -> int:
        """Picodollars that a request with these texts in its messages can cost at most; 0 without a price."""
        if self.price is None:
            return 0
        prompt = sum(len(text.encode("utf-8", "surrogatepass")) + ALLOWANCE for text in texts) + ALLOWANCE
        return prompt * self.price.prompt + max_tokens * self.price.answer

    def cost(self, usage: Usage | None, *, reserved: int) -> int:
        """Picodollars that a reply has cost; all that was reserved when it does not say."""
        if self.price is None or usage is None:
            return reserved
        return usage.prompt * self.price.prompt + usage.answer * self.price.answer

    def admits(self, ledger: Ledger, amount: int) -> bool:
        """Whether one more request of this amount stays under both caps, whatever those under way turn out to cost."""
        if self.cap is not None and ledger.settled + ledger.reserved + amount > self.cap:
            return False
        return self.max_requests is None or ledger.n_spent + len(ledger.open) < self.max_requests

    def left_usd(self, ledger: Ledger) -> float | None:
        """Dollars that are neither spent nor reserved."""
        return None if self.cap is None else max(0, self.cap - ledger.settled - ledger.reserved) / PICO


def exhausted(budget: Budget, ledger: Ledger, *, safe: str) -> LimitError:
    """The error at a cap: which one, and how to go on."""
    if budget.cap is None or (budget.max_requests is not None and ledger.n_spent >= budget.max_requests):
        found, field = f"{ledger.n_spent} of {budget.max_requests} requests are spent", "max_requests"
    else:
        used = (ledger.settled + ledger.reserved) / PICO
        found = f"${used:.6g} of ${budget.cap / PICO:.6g} is spent or reserved"
        found, field = f"{found}, and the next request may cost more than is left", "budget_usd"
    return LimitError("BUDGET", f"{found}; {safe}, raise generate.{field} and rerun")
