"""Side by side: what teacher, student and control would say next, and what they write.

Shape legend: T positions of a prompt, V vocabulary, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.cells import set_cell_size
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tutelage import visible
from tutelage.evaluation.written import end_ids
from tutelage.models import vocabulary
from tutelage.models.head import head_of, trunk
from tutelage.models.placement import device_of
from tutelage.types import TokenView

SHOWN = "next_tokens.json"  # of a run's evaluation
_PERCENT_WIDTH = 6  # " 97.1%"
_TOKEN_WIDTH = 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text to go on with; `domain` says how near it is to the training data, in words ("" when unknown)."""

    text: str
    domain: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A next token with its probability; `text` is raw model text: pass it through `visible` before showing it."""

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One model's answer to one prompt; `kl_nats` is KL(teacher || model) of this one distribution."""

    candidates: tuple[Candidate, ...]
    kl_nats: float | None
    generated: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptView:
    """All models' answers to one prompt, in the order of the models."""

    prompt: Prompt
    models: dict[str, ModelView]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The dark knowledge view; `prompts` in the order they were asked."""

    teacher: str | None
    prompts: tuple[PromptView, ...]

    def json(self) -> dict[str, Any]:
        """Plain JSON values, with the raw text."""
        return asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> "Shown":
        """The value that `json` gave."""
        return cls(teacher=value["teacher"], prompts=tuple(map(_prompt_view, value["prompts"])))


@torch.no_grad()
def show_models(
    models: dict[str, nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Sequence[Prompt],
    teacher: str | None,
    n_vocabulary: int,
    top_k: int = 8,
    new_tokens: int = 40,
) -> Shown:
    """The `top_k` most likely next tokens and `new_tokens` greedily generated ones of every model, for every prompt."""
    views = []
    for prompt in prompts:
        ids_T = _encode(tokenizer, prompt.text)
        logp = {name: _next_logp(model, ids_T, n_vocabulary=n_vocabulary) for name, model in models.items()}
        answers = {
            name: ModelView(
                candidates=_candidates(tokenizer, logp[name], last_id=int(ids_T[-1]), top_k=top_k),
                kl_nats=_kl(logp[teacher], logp[name]) if teacher else None,
                generated=_generate(model, tokenizer, ids_T=ids_T, n_vocabulary=n_vocabulary, new_tokens=new_tokens),
            )
            for name, model in models.items()
        }
        views.append(PromptView(prompt=prompt, models=answers))
    return Shown(teacher=teacher, prompts=tuple(views))


def render(shown: Shown, *, width: int) -> Group:
    """For a terminal `width` columns wide: one block a prompt, one column a model."""
    return Group(*(part for view in shown.prompts for part in (_block(view, shown.teacher, width=width), Text(""))))


def _prompt_view(value: Mapping[str, Any]) -> PromptView:
    models = {
        name: ModelView(
            candidates=tuple(Candidate(**c) for c in m["candidates"]), kl_nats=m["kl_nats"], generated=m["generated"]
        )
        for name, m in value["models"].items()
    }
    return PromptView(prompt=Prompt(**value["prompt"]), models=models)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Ids [T]; an empty prompt becomes the beginning of a text."""
    ids = (
        tokenizer(text)["input_ids"]
        or [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None][:1]
    )
    return torch.tensor(ids, dtype=torch.int64)


def _next_logp(model: nn.Module, ids_T: Tensor, *, n_vocabulary: int) -> Tensor:
    """Log-probabilities [V] of the token after a prompt, float64 on the CPU."""
    head = head_of(model, n_vocabulary=n_vocabulary)
    ids_BT = ids_T[None].to(head.weight_VD.device)
    hidden_D = trunk(model, TokenView.of(ids_BT, ids_BT))[0, -1]
    return torch.log_softmax(head.logits(hidden_D[None])[0].double(), dim=-1).cpu()


def _kl(teacher_logp_V: Tensor, logp_V: Tensor) -> float:
    probability_V = teacher_logp_V.exp()
    terms_V = (probability_V * (teacher_logp_V - logp_V)).masked_fill(probability_V == 0, 0.0)
    return float(terms_V.sum())


def _candidates(
    tokenizer: PreTrainedTokenizerBase, logp_V: Tensor, *, last_id: int, top_k: int
) -> tuple[Candidate, ...]:
    top = logp_V.topk(min(top_k, len(logp_V)))
    return tuple(
        Candidate(token_id=i, text=vocabulary.token_text(tokenizer, i, after=last_id), probability=p)
        for i, p in zip(top.indices.tolist(), top.values.exp().tolist(), strict=True)
    )


def _generate(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, ids_T: Tensor, n_vocabulary: int, new_tokens: int
) -> str:
    """The most likely token again and again, until the text ends or `new_tokens` are written."""
    ends = end_ids(model, tokenizer)
    step_BT = ids_T[None].to(device_of(model))
    cache = None
    made: list[int] = []
    while len(made) < new_tokens:
        output = model(input_ids=step_BT, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        step_BT = output.logits[:, -1:, :n_vocabulary].argmax(-1)
        made.append(int(step_BT))
        if made[-1] in ends:
            break
    prompt = ids_T.tolist()
    before, both = vocabulary.decoded(tokenizer, prompt), vocabulary.decoded(tokenizer, prompt + made)
    return both[len(before) :] if both.startswith(before) else vocabulary.decoded(tokenizer, made)


def _block(view: PromptView, teacher: str | None, *, width: int) -> Table:
    column = max((width - 2 * (len(view.models) - 1)) // len(view.models), _PERCENT_WIDTH + 6)
    title = Text(visible.line(view.prompt.text), style="bold")
    if view.prompt.domain:
        title.append(f"   {visible.line(view.prompt.domain)}", style="not bold dim")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False, width=width)
    for name, answer in view.models.items():
        table.add_column(_heading(name, answer, teacher), width=column, justify="left")
    firsts = view.models[teacher].candidates if teacher else ()
    for rank in range(max(len(a.candidates) for a in view.models.values())):
        cells = (_cell(a.candidates, rank, firsts, width=column) for a in view.models.values())
        table.add_row(*cells)
    table.add_row(*(Text("─" * column, style="dim") for _ in view.models))
    table.add_row(
        *(Text(visible.text(a.generated).strip(), style="italic", overflow="fold") for a in view.models.values())
    )
    return table


def _heading(name: str, answer: ModelView, teacher: str | None) -> Text:
    heading = Text(visible.line(name).replace("_", " "), style="bold cyan")
    if answer.kl_nats is not None and name != teacher:
        heading.append(f"  KL {answer.kl_nats:.2f}", style="not bold dim")
    return heading


def _cell(candidates: Sequence[Candidate], rank: int, firsts: Sequence[Candidate], *, width: int) -> Text:
    """`token ███▌ 37.2%`; bold: the teacher's first choice, dim: not among the teacher's listed ones."""
    if rank >= len(candidates):
        return Text("")
    candidate = candidates[rank]
    token_width = max(min(_TOKEN_WIDTH, width - _PERCENT_WIDTH - 4), 4)
    bar_width = max(width - token_width - _PERCENT_WIDTH - 1, 0)
    listed = {c.token_id for c in firsts}
    style = "bold" if firsts and candidate.token_id == firsts[0].token_id else ""
    cell = Text(
        _fitted(visible.token(candidate.text), token_width),
        style=style if candidate.token_id in listed or not firsts else "dim",
    )
    cell.append(" " + _bar(candidate.probability, bar_width), style="cyan")
    cell.append(f"{100 * candidate.probability:5.1f}%".rjust(_PERCENT_WIDTH))
    return cell


def _fitted(shown: str, width: int) -> str:
    cut = set_cell_size(shown, width)
    return cut if cut.rstrip() == shown or len(shown) <= 1 else set_cell_size(shown, width - 1).rstrip() + "…"


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)
