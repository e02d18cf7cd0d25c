"""The register: historic bugs of the field as one-line patches, each with the oracle that must notice it.

Ids are stable: never renumber, only append.  Those that are missing here belong to code that does not exist yet.
To add one: the exact line (without its indentation), what it becomes, and the narrowest test that is there for it.
"""

from dataclasses import dataclass

LOSSES = "tests/losses/test_oracles.py::"
STEP = "tests/training/test_trainer.py::"
PLAIN = "tests/oracles/test_plain_loop.py::"
STATS = "tests/evaluation/test_stats.py::"
TOKENS = "tests/data/test_tokenize.py::"
LOADER = "tests/data/test_loader.py::"
IO = "tests/test_io.py::"
KILLED = "tests/oracles/test_killed_run.py::"
FUSED = "tests/losses/test_fused.py::"
CHECKPOINT = "tests/training/test_checkpoint.py::"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One line of one file, changed."""

    id: str
    what: str
    file: str  # below src/tutelage
    old: str  # the line without its indentation
    new: str
    oracles: tuple[str, ...]  # pytest node ids; one of them must fail
    after: str = ""  # where `old` occurs more than once: the first one below the line that starts like this


_DIVERGENCES = (
    Mutant(
        id="M1",
        what="KL arguments swapped",
        file="losses/divergences.py",
        after="def forward_kl",
        old="return _expectation(teacher_logp_NS, _difference(teacher_logp_NS, student_logp_NS))",
        new="return _expectation(student_logp_NS, _difference(student_logp_NS, teacher_logp_NS))",
        oracles=(LOSSES + "test_every_divergence_equals_a_reference_written_without_tensors[forward_kl]",),
    ),
    Mutant(
        id="M2",
        what="beta taken for 1 - beta",
        file="losses/divergences.py",
        old="mixture_logp_NS = _mixture(teacher_logp_NS, student_logp_NS, a_share=beta)",
        new="mixture_logp_NS = _mixture(teacher_logp_NS, student_logp_NS, a_share=1.0 - beta)",
        oracles=(LOSSES + "test_every_divergence_equals_a_reference_written_without_tensors[jensen_shannon]",),
    ),
    Mutant(
        id="M3",
        what="beta clamped",
        file="losses/divergences.py",
        old="mixture_logp_NS = _mixture(teacher_logp_NS, student_logp_NS, a_share=beta)",
        new="mixture_logp_NS = _mixture(teacher_logp_NS, student_logp_NS, a_share=min(max(beta, 1e-3), 1 - 1e-3))",
        oracles=(LOSSES + "test_jensen_shannon_tends_to_both_kl_at_its_ends",),
    ),
    Mutant(
        id="M4",
        what="T squared dropped",
        file="losses/terms.py",
        old="factor = term.weight.value(step, n_steps=n_steps) * temperature**power",
        new="factor = term.weight.value(step, n_steps=n_steps)",
        oracles=(LOSSES + "test_scales_keep_the_gradient_size_as_temperature_changes[forward_kl]",),
    ),
    Mutant(
        id="M5",
        what="temperature applied to one side",
        file="losses/chunked.py",
        after="def term_sums",
        old="teacher_logp_NV = log_softmax(teacher_logits_NV, temperature=temperature)",
        new="teacher_logp_NV = log_softmax(teacher_logits_NV)",
        oracles=(LOSSES + "test_chunked_loss_equals_the_naive_one[5-None-reverse_kl]",),
    ),
    Mutant(
        id="M7",
        what="softmax in bfloat16",
        file="losses/support.py",
        old="wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))",
        new="wide_NV = logits_NV.to(torch.bfloat16)",
        oracles=(LOSSES + "test_float32_gradients_are_right_to_1e_5_and_bf16_no_worse_than_naive",),
    ),
    Mutant(
        id="M8",
        what="mean over the vocabulary instead of the sum",
        file="losses/divergences.py",
        old="return (weight_logp_NS.exp() * safe_value_NS).sum(-1)",
        new="return (weight_logp_NS.exp() * safe_value_NS).mean(-1)",
        oracles=(LOSSES + "test_forward_kl_gradient_is_q_minus_p_over_t[1.0]",),
    ),
    Mutant(
        id="M21",
        what="the tail of a top-k target ignored",
        file="losses/support.py",
        old="return torch.cat([kept_logp_NK, tail_N1], dim=-1)",
        new="return kept_logp_NK",
        oracles=(LOSSES + "test_merging_the_tail_never_increases_a_divergence[reverse_kl]",),
    ),
    Mutant(
        id="M22",
        what="kept probabilities normalised again beside their tail",
        file="losses/support.py",
        old="kept_logp_NK = logp_NV.gather(-1, kept_ids_NK)",
        new="kept_logp_NK = logp_NV.gather(-1, kept_ids_NK).log_softmax(-1)",
        oracles=(LOSSES + "test_merging_the_tail_never_increases_a_divergence[forward_kl]",),
    ),
    Mutant(
        id="M48",
        what="divergence without the teacher's entropy",
        file="losses/divergences.py",
        after="def forward_kl",
        old="return _expectation(teacher_logp_NS, _difference(teacher_logp_NS, student_logp_NS))",
        new="return _expectation(teacher_logp_NS, -student_logp_NS)",
        oracles=(LOSSES + "test_invariants_hold_for_every_divergence[forward_kl]",),
    ),
    Mutant(
        id="M50",
        what="tail as log(1 - sum of the kept)",
        file="losses/support.py",
        old="tail_N1 = torch.where(nothing_left_N, -math.inf, safe_NV.logsumexp(-1, keepdim=True))",
        new="tail_N1 = torch.log(1 - kept_logp_NK.exp().sum(-1, keepdim=True))",
        oracles=(LOSSES + "test_merging_the_tail_never_increases_a_divergence[reverse_kl]",),
    ),
)

_FUSED = (
    Mutant(
        id="M58",
        what="closed form: temperature applied to one side",
        file="losses/fused.py",
        old="factors=(student_head_scale / temperature, teacher_head_scale / temperature, student_head_scale),",
        new="factors=(student_head_scale / temperature, teacher_head_scale, student_head_scale),",
        oracles=(FUSED + "test_losses_and_gradient_are_those_of_the_definition",),
    ),
    Mutant(
        id="M59",
        what="closed form: the gradient without 1 / T",
        file="losses/fused.py",
        old="soft=soft_scale * student_head_scale / temperature,",
        new="soft=soft_scale * student_head_scale,",
        oracles=(FUSED + "test_losses_and_gradient_are_those_of_the_definition",),
    ),
)

_STEP = (
    Mutant(
        id="M9",
        what="mean of the means of micro-batches",
        file="training/trainer.py",
        after="def train_step",
        old="loss_sums = self.family(batch, targets, scales)",
        new="loss_sums = self.family(batch, targets, self._scales(batch.n_trained * len(microbatches)))",
        oracles=(STEP + "test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches[2x2]",),
    ),
    Mutant(
        id="M10",
        what="division by the number of micro-batches forgotten",
        file="training/trainer.py",
        after="def train_step",
        old="loss_sums = self.family(batch, targets, scales)",
        new="loss_sums = self.family(batch, targets, self._scales(batch.n_trained))",
        oracles=(STEP + "test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches[2x2]",),
    ),
    Mutant(
        id="M12",
        what="tokens counted from the labels before the shift",
        file="types.py",
        old="return int(self.view.index_N.numel())",
        new="return int((self.view.labels_BT != IGNORED).sum())",
        oracles=(PLAIN + "test_the_first_step_is_that_of_a_plain_pytorch_loop",),
    ),
    Mutant(
        id="M13",
        what="labels not shifted",
        file="types.py",
        old="shifted_BT[:, :-1] = labels_BT[:, 1:]",
        new="shifted_BT[:, :] = labels_BT",
        oracles=(STEP + "test_gradient_reaches_exactly_the_positions_before_a_label",),
    ),
    Mutant(
        id="M19",
        what="teacher left in train mode",
        file="teachers/live.py",
        old="self.model = model.eval().requires_grad_(False)",
        new="self.model = model.requires_grad_(False)",
        oracles=(STEP + "test_a_teacher_handed_over_in_train_mode_is_frozen_and_unchanged",),
    ),
    Mutant(
        id="M20",
        what="teacher with gradients",
        file="teachers/live.py",
        old="self.model = model.eval().requires_grad_(False)",
        new="self.model = model.eval()",
        oracles=(STEP + "test_a_teacher_handed_over_in_train_mode_is_frozen_and_unchanged",),
    ),
    Mutant(
        id="M23",
        what="ignored labels trained",
        file="types.py",
        old="index_N = (shifted_BT.reshape(-1) != IGNORED).nonzero().squeeze(-1)",
        new="index_N = torch.arange(shifted_BT.numel())",
        oracles=(STEP + "test_gradient_reaches_exactly_the_positions_before_a_label",),
    ),
    Mutant(
        id="M24",
        what="the chunked loss reads other weights than the model's head",
        file="models/head.py",
        old="weight_VD=output.weight,",
        new="weight_VD=model.get_input_embeddings().weight,",
        oracles=(PLAIN + "test_the_head_of_an_untied_model_is_its_output_matrix",),
    ),
    Mutant(
        id="M25",
        what="soft-cap skipped",
        file="types.py",
        old="if self.soft_cap is not None:",
        new="if False:",
        oracles=(STEP + "test_trunk_and_head_equal_the_models_own_logits",),
    ),
    Mutant(
        id="M26",
        what="dropout seeded from the global generator",
        file="training/trainer.py",
        old='torch.manual_seed(derive_seed(self._seed, "dropout", self.name, self.step))',
        new="torch.manual_seed(int(torch.randint(2**31, ())))",
        oracles=(STEP + "test_resume_from_every_step_is_bitwise_the_uninterrupted_run",),
    ),
    Mutant(
        id="M27",
        what="the step left out of the derived seed",
        file="training/trainer.py",
        old='torch.manual_seed(derive_seed(self._seed, "dropout", self.name, self.step))',
        new='torch.manual_seed(derive_seed(self._seed, "dropout", self.name))',
        oracles=(PLAIN + "test_every_step_draws_its_own_dropout",),
    ),
    Mutant(
        id="M29",
        what="Adam's moments zeroed on load",
        file="training/optim.py",
        old='self._adamw.state[parameter] = {k: state[f"{k}/{name}"].to(_home(k, parameter)) for k in keys}',
        new='self._adamw.state[parameter] = {k: torch.zeros_like(state[f"{k}/{name}"]) for k in keys}',
        oracles=(STEP + "test_resume_from_every_step_is_bitwise_the_uninterrupted_run",),
    ),
    Mutant(
        id="M47",
        what="the padded rows of a head take part",
        file="types.py",
        old="weight_VD = self.weight_VD[: self.n_vocabulary]",
        new="weight_VD = self.weight_VD",
        oracles=("tests/evaluation/test_score.py::test_padded_rows_of_a_head_take_no_part",),
    ),
    Mutant(
        id="M49",
        what="gradient divided by the token count twice",
        file="losses/terms.py",
        old="return Scale(factor=factor / count if count else 0.0, temperature=temperature)",
        new="return Scale(factor=factor / count**2 if count else 0.0, temperature=temperature)",
        oracles=(PLAIN + "test_the_first_step_is_that_of_a_plain_pytorch_loop",),
    ),
    Mutant(
        id="M52",
        what="a batch without tokens gives a zero without a graph",
        file="losses/chunked.py",
        old="return total, job.sums",
        new="return (total if len(hidden_ND) else total.detach()), job.sums",
        oracles=(LOSSES + "test_no_position_gives_a_zero_that_depends_on_the_student",),
    ),
)

_LOOP = (
    Mutant(
        id="M28",
        what="the schedule's place not restored",
        file="training/fit.py",
        old="self.trainer.step = self.saved_step = found.step",
        new="self.saved_step = found.step",
        oracles=(KILLED + "test_a_run_killed_here_and_there_ends_in_the_same_bits[300]",),
    ),
    Mutant(
        id="M60",
        what="metrics of steps that were lost stay in the file",
        file="training/fit.py",
        old="self.run.rewind_metrics(found.step if found else 0, model=self.trainer.name)",
        new="pass",
        oracles=(KILLED + "test_a_run_killed_here_and_there_ends_in_the_same_bits[300]",),
    ),
    Mutant(
        id="M61",
        what="the moving average of the weights starts anew after a resume",
        file="training/optim.py",
        old='self.average[name].copy_(state[f"average/{name}"])',
        new="self.average[name].copy_(parameter)",
        oracles=(KILLED + "test_a_run_killed_here_and_there_ends_in_the_same_bits[300]",),
    ),
)

_DATA = (
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
        old="end = [_Piece(ids=(self.eos_id,))]",
        new="end = [_Piece(ids=(self.eos_id,), trained=False)]",
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

_FILES = (
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

_EVALUATION = (
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
        file="evaluation/metrics/top1_agreement.py",
        old="return ratio(n_agree, [s.n_tokens for s in kept])",
        new="t = sum(s.n_tokens for s in kept); return ratio([float(i < sum(n_agree)) for i in range(t)], [1.0] * t)",
        oracles=(STATS + "test_standard_error_counts_sequences_not_tokens",),
    ),
)

MUTANTS: tuple[Mutant, ...] = (*_DIVERGENCES, *_FUSED, *_STEP, *_LOOP, *_DATA, *_FILES, *_EVALUATION)
