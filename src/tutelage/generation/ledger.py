"""What a journal says when its records are read in order: the state of each request, and the money.

    job       {job, url, teacher, ids}              a batch job will be made of these sendings, reserved with it
    submitted {job, batch}                          the provider's id of the job
    closed    {job}                                 nothing more comes from it: every sending is settled
    run       {at, outcomes, tutelage, …}           a process begins; what was under way in the one before is lost;
                                                    outcomes: of the answers it wants, as far as they are there
    reserved  {id, key, amount}                     money put aside, before request `key` is sent
    released  {id, key, paid, spent, why}           no reply: nothing was paid, or all of it counts as paid
    answered  {id, key, at, status, price, body | body64}  the raw reply, before any parsing; price: of a token
    parsed    {id, key, paid, spent, outcome, final}   what it was; `final`: `key` is never asked again; `old`: the call
                                                    that took it in does not want it any more

`key` is the SHA-256 of the canonical request, `id` counts the sendings.  Money is in whole picodollars (1e-12 $): a
price of a millionth of a dollar per million tokens is still exact.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from tutelage.generation.journal import Record
from tutelage.generation.key_table import KeyTable

PICO = 10**12
JUDGE = "judge:"  # how the keys of requests about answers begin


class Place(NamedTuple):
    """Where the raw reply of a request lies in the journal."""

    offset: int  # the first byte
    n_bytes: int


class Finals:
    """Key -> (outcome, place of the raw reply) of every request that is never sent again; flat in memory."""

    def __init__(self) -> None:
        self._table, self._outcomes = KeyTable(), list[str]()

    def __setitem__(self, key: str, value: tuple[str, Place]) -> None:
        outcome, place = value
        if outcome not in self._outcomes:
            self._outcomes.append(outcome)
        self._table.put(key, self._outcomes.index(outcome), place.offset, place.n_bytes)

    def __getitem__(self, key: str) -> tuple[str, Place]:
        found = self._table.get(key)
        if found is None:
            raise KeyError(key)
        return self._outcomes[found[0]], Place(found[1], found[2])

    def __contains__(self, key: object) -> bool:
        return key in self._table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)


@dataclass(slots=True, kw_only=True)
class OpenJob:
    """A batch job that may be at the provider; `batch` is its id there, once that is known."""

    url: str
    teacher: str
    ids: frozenset[int]
    price: tuple[int, int] | None  # picodollars a token, as reserved: what a recipe says later does not settle it
    batch: str = ""


@dataclass(slots=True, kw_only=True)
class Ledger:
    """The state of all requests; `apply` is the only thing that changes it."""

    settled: int = 0  # picodollars that were paid, or may have been
    open: dict[int, int] = field(default_factory=dict)  # id of a sending under way -> picodollars reserved
    keys: dict[int, str] = field(default_factory=dict)  # of the sendings under way
    raw: dict[str, tuple[int, Place]] = field(default_factory=dict)  # key -> (id, its raw reply), not parsed yet
    final: Finals = field(default_factory=Finals)
    outcomes: Counter[str] = field(default_factory=Counter)  # of the final answers that the last process wants
    judged: Counter[str] = field(default_factory=Counter)  # outcomes of final replies of a judge
    released: Counter[str] = field(default_factory=Counter)  # why sendings gave no reply
    retried: Counter[str] = field(default_factory=Counter)  # outcomes of replies that were no answer
    n_spent: int = 0  # sendings that were paid, or may have been
    n_lost: int = 0  # sendings under way when a process died
    next_id: int = 0
    jobs: dict[str, "OpenJob"] = field(default_factory=dict)  # batch jobs that are not closed
    first_at: str = ""  # of replies
    last_at: str = ""
    run: Mapping[str, object] = field(default_factory=dict)  # of the last process

    @property
    def n_judged(self) -> int:
        """Final replies of a judge."""
        return self.judged.total()

    @property
    def compute(self) -> dict[str, dict[str, str]]:
        """What models on this machine computed with in the last process, by the teacher's name."""
        return cast("dict[str, dict[str, str]]", self.run.get("compute", {}))

    @property
    def reserved(self) -> int:
        """Picodollars put aside for what is under way."""
        return sum(self.open.values())

    def apply(self, record: Record) -> None:
        """Takes in one more record."""
        fields = record.fields
        if record.kind == "run":
            self._begin(fields)
        elif record.kind == "reserved":
            self.open[fields["id"]] = fields["amount"]
            self.keys[fields["id"]] = fields["key"]
            self.next_id = max(self.next_id, fields["id"] + 1)
        elif record.kind == "job":
            price = tuple(fields["price"]) if fields["price"] is not None else None
            self.jobs[fields["job"]] = OpenJob(
                url=fields["url"], teacher=fields["teacher"], ids=frozenset(fields["ids"]), price=price
            )
        elif record.kind == "submitted":
            if fields["job"] in self.jobs:  # not after a repair that dropped the record of the job
                self.jobs[fields["job"]].batch = fields["batch"]
        elif record.kind == "closed":
            self.jobs.pop(fields["job"], None)
        elif record.kind == "released":
            self.open.pop(fields["id"], None)
            self.keys.pop(fields["id"], None)
            self.settled += fields["paid"]
            self.n_spent += bool(fields["spent"])
            self.released[fields["why"]] += 1
        elif record.kind == "answered":
            self.raw[fields["key"]] = (fields["id"], Place(record.offset, record.n_bytes))
            self.first_at, self.last_at = self.first_at or fields["at"], fields["at"]
        elif record.kind == "parsed":
            self._parsed(fields)

    @property
    def waited_for(self) -> set[int]:
        """Sendings that outlive a process: answered and not parsed, or part of a batch job."""
        answered = {number for number, _ in self.raw.values()}
        return answered.union(*(job.ids for job in self.jobs.values()))

    def _begin(self, fields: Mapping[str, object]) -> None:
        waited_for = self.waited_for
        for number in [number for number in self.open if number not in waited_for]:
            self.keys.pop(number, None)
            self.settled += self.open.pop(number)
            self.n_spent += 1
            self.n_lost += 1
        self.run = fields
        self.outcomes = Counter(cast("dict[str, int]", fields.get("outcomes", {})))

    def _parsed(self, fields: Mapping[str, object]) -> None:
        key, outcome = str(fields["key"]), str(fields["outcome"])
        answered = self.raw.pop(key, None)
        self.open.pop(int(str(fields["id"])), None)
        self.keys.pop(int(str(fields["id"])), None)
        self.settled += int(str(fields["paid"]))
        self.n_spent += bool(fields["spent"])
        if answered is None:  # lost with a damaged group that was repaired: paid, and asked again
            self.n_lost += 1
        elif fields["final"]:
            self.final[key] = (outcome, answered[1])
            if not fields.get("old"):
                (self.judged if key.startswith(JUDGE) else self.outcomes)[outcome] += 1
        else:
            self.retried[outcome] += 1
