"""The view of next tokens, with a word-level tokenizer made here and tiny models."""

import copy
import json
import unicodedata

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tutelage import visible
from tutelage.evaluation.show import Candidate, ModelView, Prompt, PromptView, Shown, render, show_models

HOSTILE = "\x1b[31mred\x07\u202egnp.exe\u2066\u200b[bold]\u2028\ud800\x00\u009b31m\ue000"


@pytest.fixture(scope="module")
def tokenizer():
    """Words w0 … w45 with the SentencePiece habit of writing spaces as ▁ and dropping a leading one."""
    vocabulary = {"<s>": 0, "</s>": 1} | {f"▁w{i}": i + 2 for i in range(46)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def models_by_name():
    return {"teacher": tiny.llama(seed=1), "copy": tiny.llama(seed=1), "student": tiny.llama(seed=2)}


@pytest.fixture(scope="module")
def shown(models_by_name, tokenizer):
    prompts = [Prompt(text="w1 w2 w3", domain="in domain"), Prompt(text="")]
    return show_models(
        models_by_name, tokenizer, prompts=prompts, teacher="teacher", n_vocabulary=48, top_k=5, new_tokens=6
    )


def test_probabilities_are_those_of_the_model_itself(shown, models_by_name, tokenizer):
    ids = torch.tensor([tokenizer("w1 w2 w3")["input_ids"]])
    with torch.no_grad():
        expected = models_by_name["student"](ids).logits[0, -1].softmax(-1)
    top = expected.topk(5)
    candidates = shown.prompts[0].models["student"].candidates
    assert [c.token_id for c in candidates] == top.indices.tolist()
    assert [c.probability for c in candidates] == pytest.approx(top.values.tolist(), rel=1e-12)


def test_a_copy_of_the_teacher_has_kl_zero_and_says_the_same(shown):
    for view in shown.prompts:
        assert view.models["copy"] == view.models["teacher"]
        assert view.models["copy"].kl_nats == 0.0
        assert view.models["student"].kl_nats > 0.0


def test_generation_is_greedy_and_equals_the_slow_way_without_a_cache(shown, models_by_name, tokenizer):
    ids = tokenizer("w1 w2 w3")["input_ids"]
    with torch.no_grad():
        for _ in range(6):
            following = int(models_by_name["student"](torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            ids = [*ids, following]
            if following == tokenizer.eos_token_id:
                break
    assert "w1 w2 w3" + shown.prompts[0].models["student"].generated == tokenizer.decode(ids)


def test_generation_stops_where_the_model_ends_the_text(tokenizer):
    model = tiny.llama(seed=1, tied=False)
    with torch.no_grad():
        final = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        hidden = model.model(torch.tensor([tokenizer("w1")["input_ids"]])).last_hidden_state[0, -1]
        final[tokenizer.eos_token_id] = hidden
        model.lm_head.weight = final
    view = show_models({"m": model}, tokenizer, prompts=[Prompt(text="w1")], teacher=None, n_vocabulary=48)
    assert view.prompts[0].models["m"].generated.strip() == "</s>"


def test_a_token_keeps_the_space_it_begins_with(shown):
    texts = [c.text for c in shown.prompts[0].models["teacher"].candidates if c.token_id > 1]
    assert texts
    assert all(text.startswith(" w") for text in texts)


def test_padded_rows_of_a_head_are_never_shown(models_by_name, tokenizer):
    model = copy.deepcopy(models_by_name["student"])
    weight = model.get_output_embeddings().weight.detach()
    huge = torch.nn.Parameter(torch.cat([weight, weight[:1] * 100, -weight[:1] * 100]))
    model.get_output_embeddings().weight = huge
    view = show_models({"m": model}, tokenizer, prompts=[Prompt(text="w1")], teacher=None, n_vocabulary=48)
    answer = view.prompts[0].models["m"]
    assert all(c.token_id < 48 for c in answer.candidates)
    assert "w" in answer.generated or "</s>" in answer.generated


def test_what_is_stored_reads_back_equal(shown):
    assert Shown.of_json(json.loads(json.dumps(shown.json()))) == shown


def _view(text: str) -> Shown:
    answer = ModelView(candidates=(Candidate(token_id=3, text=text, probability=0.5),), kl_nats=0.1, generated=text)
    view = PromptView(prompt=Prompt(text=text, domain=text), models={"teacher": answer, "student": answer})
    return Shown(teacher="teacher", prompts=(view,))


def _printed(shown: Shown, *, width: int) -> str:
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(render(shown, width=width))
    return captured.get()


@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_wider_than_the_terminal(shown, width):
    lines = _printed(shown, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("%" in line for line in lines)


def test_model_text_cannot_steer_a_terminal():
    printed = _printed(_view(HOSTILE), width=100).replace("\n", "")
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} for c in printed)
    assert "[bold]" in printed
    assert "\\x1b[31m" in printed


def test_an_escape_is_never_mistaken_for_text():
    assert visible.token("\\n") != visible.token("\n")
    assert visible.token(" a b") == "␣a␣b"
    assert visible.token("") == "∅"
    assert visible.text("a\n\tb") == "a\n    b"
    assert visible.line("a\nb\xa0c") == "a\\nb\\xa0c"
