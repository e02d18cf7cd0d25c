"""Bugs of reading what users give: compressed files, Parquet, rows, and which sources are looked at."""

from tests.mutants.mutant import Mutant

SOURCES = "tests/data/test_sources.py::"
PLACES = "tests/data/test_places.py::"
PARQUET = "tests/data/test_parquet.py::"
CORPUS = "tests/training/test_corpus.py::"

INPUT = (
    Mutant(
        id="M580",
        what="a stream behind the first one of a file is left out when it cannot be read",
        file="data/members.py",
        old="self._member = self._new()",
        new="return 0",
        oracles=(PLACES + "test_a_damaged_later_member_is_an_error_and_never_fewer_documents",),
    ),
    Mutant(
        id="M581",
        what="any number of zeros is taken for padding",
        file="data/members.py",
        old="if n_padding % _PADDING_UNIT:",
        new="if False:",
        oracles=(PLACES + "test_xz_streams_may_be_padded_by_fours_of_zeros_and_by_nothing_else",),
    ),
    Mutant(
        id="M582",
        what="only the sources that are trained on are looked at for conversations",
        file="training/corpus.py",
        old="return (*recipe.data.sources, *(held_out or ()), *recipe.evaluation.out_of_domain)",
        new="return recipe.data.sources",
        oracles=(CORPUS + "test_conversations_are_measured_beside_plain_text_that_is_trained",),
    ),
    Mutant(
        id="M583",
        what="a chat template for what is only measured is refused as one without effect",
        file="recipe/rules.py",
        old='lists = [(data, "sources"), (section_of(data, "held_out"), "sources"), (evaluation, "out_of_domain")]',
        new='lists = [(data, "sources"), (evaluation, "none")]',
        oracles=(CORPUS + "test_conversations_are_measured_beside_plain_text_that_is_trained",),
    ),
    Mutant(
        id="M584",
        what="a role that spells a control token opens a turn",
        file="data/tokenize.py",
        old="if self.control_pattern.search(message.role):",
        new="if False:",
        oracles=(
            "tests/data/test_tokenize.py::"
            "test_a_role_that_spells_a_control_token_is_rejected_by_its_name_and_an_unusual_one_is_rendered",
        ),
    ),
    Mutant(
        id="M585",
        what="a value of Parquet that Python cannot hold becomes a text",
        file="data/arrow.py",
        old='return Unreadable(" ".join(str(error).split())[:MOST_REASON])',
        new='return " ".join(str(error).split())[:MOST_REASON]',
        oracles=(PARQUET + "test_a_value_of_parquet_that_python_cannot_hold_is_a_reject_of_its_row_where_it_is_used",),
    ),
    Mutant(
        id="M586",
        what="rows that share an id and nothing else are taken for copies",
        file="data/files.py",
        old="key = hashlib.sha256(json.dumps([row_id, item.id]).encode()).digest()",
        new="key = hashlib.sha256(json.dumps([row_id]).encode()).digest()",
        oracles=(PARQUET + "test_a_row_is_a_copy_when_an_earlier_one_of_its_file_has_its_id_and_its_content",),
    ),
    Mutant(
        id="M587",
        what="the id of a Parquet file's rows is not read, so that no copy is found",
        file="data/files.py",
        old="for number, values in enumerate(arrow.parquet_rows(file, columns, also=(ID,), name=str(path)), start=1):",
        new="for number, values in enumerate(arrow.parquet_rows(file, columns, name=str(path)), start=1):",
        oracles=(PARQUET + "test_a_row_is_a_copy_when_an_earlier_one_of_its_file_has_its_id_and_its_content",),
    ),
    Mutant(
        id="M588",
        what="UTF-16 is taken for one byte a character, and converted into rubbish",
        file="data/files.py",
        old="if offset == 0 and (encoding := _wide_encoding(data)):",
        new='if False and (encoding := ""):',
        oracles=(SOURCES + "test_a_file_in_another_encoding_is_an_error_with_the_command_that_converts_it",),
    ),
    Mutant(
        id="M589",
        what="brackets in the name of a recipe's folder are a pattern",
        file="data/patterns.py",
        old="escaped = str(Path(glob.escape(str(here)), *rest))",
        new="escaped = pattern",
        oracles=(
            SOURCES + "test_brackets_of_a_folder_that_is_there_are_its_name_and_those_of_a_file_are_written_otherwise",
        ),
    ),
    Mutant(
        id="M590",
        what="a turn that calls tools ends where its content spells the token that ends turns",
        file="models/tool_turns.py",
        old='syntax = "".join(s.text if s.kind == "template" else _HIDDEN * len(s.text) for s in segments)',
        new="syntax = text",
        oracles=("tests/models/test_tool_turns.py::test_a_content_that_spells_control_tokens_hides_no_call_behind_it",),
    ),
)
