"""B6-B8, B25: whether two models count in the same tokens is decided by content, before any weight is loaded."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.models.tiny_models import CHATML, SPECIAL, tokenizer
from tutelage.errors import IntegrityError
from tutelage.models import vocabulary


def test_a_fingerprint_survives_saving_padding_and_truncation(tmp_path: Path) -> None:
    own = tokenizer()
    before = vocabulary.tokenizer_fingerprint(own)
    own.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    read.backend_tokenizer.enable_truncation(4)
    read.backend_tokenizer.enable_padding(pad_id=1, pad_token=SPECIAL[1])
    assert vocabulary.tokenizer_fingerprint(read) == before
    vocabulary.compare_tokenizers(own, read)


@pytest.mark.parametrize(
    "change", ["token", "order", "word", "merge", "normalizer", "pre_tokenizer", "added", "template"]
)
def test_a_fingerprint_changes_with_what_decides_the_ids_and_only_then(change: str) -> None:
    from tokenizers import AddedToken, normalizers, pre_tokenizers

    own, other = tokenizer(), tokenizer()
    match change:
        case "token":
            other = tokenizer(words=("ab", "ce"))
        case "order":
            other = tokenizer(words=("cd", "ab"))
        case "word":
            other = tokenizer(words=("ab", "cd", "ef"))
        case "merge":
            other = tokenizer(merged=False)
        case "normalizer":
            other.backend_tokenizer.normalizer = normalizers.Lowercase()
        case "pre_tokenizer":
            other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        case "added":
            other.add_tokens([AddedToken("zz", normalized=False)])
        case "template":
            other.chat_template = CHATML + " "
    equal = vocabulary.tokenizer_fingerprint(own) == vocabulary.tokenizer_fingerprint(other)
    assert equal == (change == "template")
    assert (vocabulary.template_fingerprint(own) == vocabulary.template_fingerprint(other)) == (change != "template")
    if change != "template":
        with pytest.raises(IntegrityError, match="TOKENIZER_MISMATCH"):
            vocabulary.compare_tokenizers(own, other)


def test_a_mismatch_counts_the_ids_and_names_the_first() -> None:
    teacher, student = tokenizer(words=("ab", "cd")), tokenizer(words=("ab", "ce", "fg"))
    with pytest.raises(IntegrityError) as caught:
        vocabulary.compare_tokenizers(teacher, student)
    first = teacher.convert_tokens_to_ids("cd")
    assert f"2 of {len(student)} ids differ, first: {first} 'cd' vs 'ce'" in caught.value.message
    assert caught.value.exit_code == 3


def test_placeholders_that_a_gguf_invents_do_not_count() -> None:
    own, padded = tokenizer(), tokenizer(placeholders=6)
    assert len(padded) == len(own) + 6
    assert vocabulary.real_vocabulary(padded) == vocabulary.real_vocabulary(own) == len(own)
    assert vocabulary.tokenizer_fingerprint(padded) == vocabulary.tokenizer_fingerprint(own)
    vocabulary.compare_tokenizers(own, padded)


def test_a_real_token_that_looks_like_a_placeholder_counts() -> None:
    own = tokenizer()
    own.add_tokens(["[PAD7]"])
    assert vocabulary.real_vocabulary(own) == len(own)


def test_templates_that_differ_are_named_by_their_first_differing_line() -> None:
    other = CHATML + "\n{# more #}"
    with pytest.raises(IntegrityError) as caught:
        vocabulary.compare_templates(tokenizer(), tokenizer(template=other))
    assert caught.value.code == "TEMPLATE_MISMATCH"
    n_lines = len(CHATML.splitlines())
    assert f"line {n_lines + 1}: '(ends)' vs '{{# more #}}'" in caught.value.message
    vocabulary.compare_templates(tokenizer(), tokenizer())
    vocabulary.compare_templates(tokenizer(), tokenizer(template=None))


def test_different_ends_warn_and_give_both_stop_ids(capsys: pytest.CaptureFixture[str]) -> None:
    base = tokenizer()
    base.eos_token = SPECIAL[0]
    assert vocabulary.compare_ends(tokenizer(), tokenizer()) == (1,)
    assert capsys.readouterr().err == ""
    assert vocabulary.compare_ends(tokenizer(), base) == (1, 0)
    err = capsys.readouterr().err
    assert err.startswith("warning[EOS_MISMATCH]: teacher ends on 1 '<|im_end|>', student on 0 '<|im_start|>'")


def test_padded_rows_warn_and_missing_rows_are_an_error() -> None:
    assert vocabulary.padded_rows(40, 40) is None
    more, fewer = vocabulary.padded_rows(48, 40), vocabulary.padded_rows(40, 48)
    assert more is not None and fewer is not None
    assert (more.level, fewer.level) == ("warning", "error")
    assert "8 of the head's 48 rows" in more.message
