"""Bugs of what reaches in from outside: sources, forms of conversations, the mix by tokens, trackers."""

from tests.mutants.mutant import Mutant

OTHER = "tests/verbs/test_other_models.py::"

PLACES = "tests/data/test_places.py::"
PARQUET = "tests/data/test_parquet.py::"
TOOLS = "tests/models/test_tool_turns.py::"
CHECKED = PARQUET + "test_a_column_that_is_not_there_and_a_damaged_parquet_file_are_errors_that_name_what_is_there"
FETCHED = PLACES + "test_what_was_fetched_is_read_offline_and_a_part_of_it_is_refused"
CUT = PLACES + "test_a_compressed_file_that_was_cut_is_an_error_with_file_and_line_and_never_fewer_documents[.gz]"

REACH = (
    Mutant(
        id="M530",
        what="a compressed file that was cut short ends where it ends",
        file="data/places.py",
        old="raise _damaged(place, error, stream) from error",
        new="return",
        oracles=(CUT,),
    ),
    Mutant(
        id="M531",
        what="the checksums of Parquet pages are not compared",
        file="data/arrow.py",
        old="table = pa.parquet.ParquetFile(file, page_checksum_verification=True)",
        new="table = pa.parquet.ParquetFile(file, page_checksum_verification=False)",
        oracles=(CHECKED,),
    ),
    Mutant(
        id="M532",
        what="a part of a split in the hub's cache is the split",
        file="data/hub.py",
        old="if there != int(found[1]):",
        new="if there < 0:",
        oracles=(FETCHED,),
    ),
    Mutant(
        id="M533",
        what="every epoch takes the same part of a source",
        file="data/pack.py",
        old="first, last = epoch * n_wanted, (epoch + 1) * n_wanted",
        new="first, last = 0, n_wanted",
        oracles=(
            "tests/data/test_pack.py::"
            "test_turns_take_the_wanted_tokens_within_one_row_and_no_row_again_before_all_others",
        ),
    ),
    Mutant(
        id="M534",
        what="the mix by tokens counts all tokens, not the trained ones",
        file="data/loader.py",
        old="tokens, sources = self.store.n_trained[self.rows], self.store.sources[self.rows]",
        new="tokens, sources = self.store.lengths[self.rows], self.store.sources[self.rows]",
        oracles=(
            "tests/data/test_loader.py::test_mixed_by_tokens_a_weight_is_the_share_of_trained_tokens_in_every_epoch",
        ),
    ),
    Mutant(
        id="M535",
        what="a control token that a tool call spells is encoded as one",
        file="data/tokenize.py",
        old="if any(self.control_pattern.search(text) for text in example.structured):",
        new="if any(self.control_pattern.search(text) for text in example.structured[:0]):",
        oracles=(
            "tests/data/test_tokenize.py::"
            "test_a_tool_call_that_spells_a_control_token_is_rejected_and_a_plain_one_is_rendered",
        ),
    ),
    Mutant(
        id="M536",
        what="a turn that calls tools is learned without its end",
        file="models/tool_turns.py",
        old="return len(before), end + len(end_of_turn)",
        new="return len(before), end",
        oracles=(
            TOOLS + "test_a_turn_that_calls_tools_is_trained_from_where_the_model_begins_to_the_token_that_ends_it",
        ),
    ),
    Mutant(
        id="M537",
        what="a template that drops tool calls is used",
        file="models/tool_turns.py",
        old="if mark not in text:",
        new="if not mark:",
        oracles=(TOOLS + "test_a_template_that_drops_tools_or_hides_where_a_call_ends_is_refused",),
    ),
    Mutant(
        id="M538",
        what="a tracker is told again what a resumed run repeats",
        file="training/tracking.py",
        old="if not self._failure and row.step > self._sent.get(row.series, 0):",
        new="if not self._failure and row.step > 0:",
        oracles=(
            "tests/training/test_tracking.py::"
            "test_a_resumed_series_goes_on_without_a_step_twice_and_without_losing_another_models",
        ),
    ),
    Mutant(
        id="M539",
        what="a chosen conversation that repeats the prompt has it twice",
        file="data/conversation.py",
        old="if turns[: len(question)] == question:  # chosen repeats the prompt",
        new="if turns == question:  # chosen repeats the prompt",
        oracles=("tests/data/test_conversation.py::test_what_is_learned_of_a_conversation_is_what_its_form_says",),
    ),
    Mutant(
        id="M540",
        what="what lies behind a URL is known by its size alone",
        file="data/places.py",
        old="tag = next((str(value) for value in tags if value), None)",
        new="return str(info.get('size'))",
        oracles=(PLACES + "test_files_behind_a_url_are_read_as_local_ones_and_known_by_their_version",),
    ),
    Mutant(
        id="M541",
        what="lines behind a URL are read without a buffer of our own",
        file="data/places.py",
        old='return cast(BinaryIO, BufferedReader(self.system.open(path=self.url, mode="rb"), BUFFER_BYTES))',
        new='return cast(BinaryIO, self.system.open(path=self.url, mode="rb"))',
        oracles=(PLACES + "test_a_store_that_is_read_by_ranges_gives_the_same_lines",),
    ),
    Mutant(
        id="M459",
        what="of StereoSet's own file only the place in the list is known, not the list",
        file="evaluation/pairs.py",
        old='yield from ((f"{path}:{kind}[{i}]", row) for i, row in enumerate(rows))',
        new='yield from ((f"{path}:[{i}]", row) for i, row in enumerate(rows))',
        oracles=(
            "tests/evaluation/test_probes.py::test_stereosets_own_file_and_a_list_are_read_and_lines_by_that_name_too",
        ),
    ),
    Mutant(
        id="M463",
        what="a width that cannot be saved is trained",
        file="models/width.py",
        old="if _is_valid(config, asked):",
        new="if True:",
        oracles=("tests/models/test_width.py::test_more_than_the_teacher_has_or_uneven_groups_are_refused",),
    ),
    Mutant(
        id="M464",
        what="a share of the channels that the heads do not divide is refused, not moved",
        file="models/width.py",
        old="if others and is_share:",
        new="if False:",
        oracles=("tests/models/test_width.py::test_what_a_recipe_asks_in_numbers",),
    ),
    Mutant(
        id="M465",
        what="numbers of held-out text demanded of an endpoint that never saw it",
        file="training/teachers.py",
        old="asked_once = own_text and recipe.training.evaluate_every is None  # at the end, and not for the loss",
        new="asked_once = False",
        oracles=(
            "tests/verbs/test_compare_endpoint.py::"
            "test_what_an_endpoint_writes_is_compared_with_the_text_that_it_went_on_from",
        ),
    ),
    Mutant(
        id="M570",
        what="doctor and plan fail on a model without attention",
        file="planning/flops.py",
        old='heads: int = getattr(config, "num_attention_heads", 0)  # Mamba has none',
        new="heads: int = config.num_attention_heads",
        oracles=(OTHER + "test_a_model_without_attention_is_examined_planned_and_trained",),
    ),
    Mutant(
        id="M571",
        what="tokens are looked up that the teacher has no row for",
        file="training/prepare.py",
        old="head_of(model, n_vocabulary=n_vocabulary)  # has it a row for every token? before one is looked up",
        new="pass",
        oracles=(OTHER + "test_a_tokenizer_with_more_tokens_than_the_head_has_rows_is_one_line",),
    ),
    Mutant(
        id="M572",
        what="a mixture in float64 cannot be saved",
        file="models/save.py",
        old="again = cast(again, dtype)  # of a mixture, that it can compute in float64",
        new="pass",
        oracles=(OTHER + "test_a_mixture_trains_in_float64_too",),
    ),
)
