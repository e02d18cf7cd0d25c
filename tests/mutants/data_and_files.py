"""Bugs of data, files, checkpoints, evaluation and reports."""

from tests.mutants.mutant import Mutant

STATS = "tests/evaluation/test_stats.py::"
TOKENS = "tests/data/test_tokenize.py::"
LOADER = "tests/data/test_loader.py::"
IO = "tests/test_io.py::"
CHECKPOINT = "tests/training/test_checkpoint.py::"

DATA = (
    Mutant(
        id="M15",
        what="the prompt is trained",
        file="data/tokenize.py",
        old="prompt = _split_long(_Piece(text=example.prompt, trained=False, begins=True)) if example.prompt else []",
        new="prompt = _split_long(_Piece(text=example.prompt, trained=True, begins=True)) if example.prompt else []",
        oracles=(TOKENS + "test_a_prompt_is_not_trained_with_answers_and_is_with_all",),
    ),
    Mutant(
        id="M16",
        what="masked by the pad id, which is also the end token",
        file="data/loader.py",
        old="positions_BT[b, begin:] = counting[: shape[1] - begin]",
        new="labels_BT[b][ids_BT[b] == pad_id] = IGNORED; positions_BT[b, begin:] = counting[: shape[1] - begin]",
        oracles=(LOADER + "test_padding_with_the_end_token_trains_every_end_and_no_padding",),
    ),
    Mutant(
        id="M17",
        what="the end token is not trained",
        file="data/tokenize.py",
        old="end = [] if example.is_cut else [_Piece(ids=(self.eos_id,))]",
        new="end = [] if example.is_cut else [_Piece(ids=(self.eos_id,), trained=False)]",
        oracles=(TOKENS + "test_a_prompt_is_not_trained_with_answers_and_is_with_all",),
    ),
    Mutant(
        id="M18",
        what="the answer taken for the last n positions of a padded row",
        file="data/loader.py",
        old="labels_BT[b, begin + 1 : end][row.loss_mask[1:]] = row.ids[1:][row.loss_mask[1:]]",
        new="labels_BT[b, shape[1] - int(row.loss_mask[1:].sum()) :] = row.ids[1:][row.loss_mask[1:]]",
        oracles=(LOADER + "test_the_layout_is_whole_rows_restarting_positions_and_no_label_on_a_first_token",),
    ),
    Mutant(
        id="M30",
        what="the order starts again with the first epoch's",
        file="data/loader.py",
        old="order = pack.epoch_order(len(instances), seed=self.seed, epoch=epoch)",
        new="order = pack.epoch_order(len(instances), seed=self.seed, epoch=0)",
        oracles=(LOADER + "test_an_epoch_holds_every_row_once",),
    ),
    Mutant(
        id="M31",
        what="a resume counts its steps from where it began",
        file="data/loader.py",
        old="first = number * self.rows_per_step",
        new='first = (number - self.__dict__.setdefault("_from", number)) * self.rows_per_step',
        oracles=(LOADER + "test_a_resumed_loader_gives_the_exact_ordered_suffix_from_every_step",),
    ),
    Mutant(
        id="M43",
        what="control tokens parsed in what a user wrote",
        file="data/tokenize.py",
        old="backend.encode_special_tokens = True",
        new="backend.encode_special_tokens = False",
        oracles=(TOKENS + "test_no_text_becomes_a_control_token_and_the_ids_spell_the_text",),
    ),
)

FILES = (
    Mutant(
        id="M33",
        what="a file renamed before it is durable",
        file="io.py",
        after="def write_new",
        old="_fsync(fd, path)",
        new="pass",
        oracles=(IO + "test_after_a_power_loss_a_file_is_old_or_new_and_what_was_acknowledged_is_there",),
    ),
    Mutant(
        id="M34",
        what="a name that is not made durable",
        file="io.py",
        after="def _aside",
        old="fsync_directory(path.parent)",
        new="pass",
        oracles=(IO + "test_after_a_power_loss_a_file_is_old_or_new_and_what_was_acknowledged_is_there",),
    ),
    Mutant(
        id="M35",
        what="older checkpoints deleted before the new one is whole",
        file="training/checkpoint.py",
        after="def save",
        old="_sweep(folder)",
        new='[io.remove_tree(path) for path in folder.glob("step-*")]',
        oracles=(CHECKPOINT + "test_a_save_killed_at_any_operation_leaves_the_previous_or_the_new_one",),
    ),
    Mutant(
        id="M36",
        what="appending after a torn line",
        file="io.py",
        old='if size and os.pread(fd, 1, size - 1) != b"\\n":',
        new="if False:",
        oracles=(IO + "test_a_line_is_not_appended_to_half_a_line",),
    ),
)

EVALUATION = (
    Mutant(
        id="M44",
        what="text of a model unescaped in the report",
        file="reports/build.py",
        old="autoescape=True,",
        new="autoescape=False,",
        oracles=("tests/reports/test_build.py::test_no_text_adds_a_tag_an_attribute_or_an_address_to_the_page",),
    ),
    Mutant(
        id="M57",
        what="standard error that counts tokens",
        file="evaluation/stats.py",
        old="return ratio([a for a, _ in known], [b for _, b in known])",
        new="a, t = sum(a for a, _ in known), int(sum(b for _, b in known)); "
        "return ratio([float(i < a) for i in range(t)], [1.0] * t)",
        oracles=(STATS + "test_standard_error_counts_sequences_not_tokens",),
    ),
)
