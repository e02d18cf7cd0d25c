"""Bugs of the step, of its types and heads, and of the loop around it."""

from tests.mutants.mutant import Mutant

LOSSES = "tests/losses/test_oracles.py::"
STEPS = "tests/training/test_trainer.py::"
PLAIN = "tests/oracles/test_plain_loop.py::"
KILLED = "tests/oracles/test_killed_run.py::"

STEP = (
    Mutant(
        id="M9",
        what="mean of the means of micro-batches",
        file="training/trainer.py",
        after="def train_step",
        old="loss_sums = self.family(batch, self._targets(batch), scales, before=partial(self._seed_dropout, number))",
        new="loss_sums = self.family("
        "batch, self._targets(batch), self._scales(batch.n_trained * len(microbatches), training))",
        oracles=(STEPS + "test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches[2x2]",),
    ),
    Mutant(
        id="M10",
        what="division by the number of micro-batches forgotten",
        file="training/trainer.py",
        after="def train_step",
        old="loss_sums = self.family(batch, self._targets(batch), scales, before=partial(self._seed_dropout, number))",
        new="loss_sums = self.family(batch, self._targets(batch), self._scales(batch.n_trained, training))",
        oracles=(STEPS + "test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches[2x2]",),
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
        oracles=(STEPS + "test_gradient_reaches_exactly_the_positions_before_a_label",),
    ),
    Mutant(
        id="M19",
        what="teacher left in train mode",
        file="teachers/live.py",
        old="self.model = model.eval().requires_grad_(False)",
        new="self.model = model.requires_grad_(False)",
        oracles=(STEPS + "test_a_teacher_handed_over_in_train_mode_is_frozen_and_unchanged",),
    ),
    Mutant(
        id="M20",
        what="teacher with gradients",
        file="teachers/live.py",
        old="self.model = model.eval().requires_grad_(False)",
        new="self.model = model.eval()",
        oracles=(STEPS + "test_a_teacher_handed_over_in_train_mode_is_frozen_and_unchanged",),
    ),
    Mutant(
        id="M23",
        what="ignored labels trained",
        file="types.py",
        old="index_N = (shifted_BT.reshape(-1) != IGNORED).nonzero().squeeze(-1)",
        new="index_N = torch.arange(shifted_BT.numel())",
        oracles=(STEPS + "test_gradient_reaches_exactly_the_positions_before_a_label",),
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
        oracles=(STEPS + "test_trunk_and_head_equal_the_models_own_logits",),
    ),
    Mutant(
        id="M26",
        what="dropout seeded from the global generator",
        file="training/trainer.py",
        old='torch.manual_seed(derive_seed(self._seed, "dropout", name, self.step, number))',
        new="torch.manual_seed(int(torch.randint(2**31, ())))",
        oracles=(STEPS + "test_resume_from_every_step_is_bitwise_the_uninterrupted_run",),
    ),
    Mutant(
        id="M27",
        what="the step left out of the derived seed",
        file="training/trainer.py",
        old='torch.manual_seed(derive_seed(self._seed, "dropout", name, self.step, number))',
        new='torch.manual_seed(derive_seed(self._seed, "dropout", name, number))',
        oracles=(PLAIN + "test_every_step_draws_its_own_dropout",),
    ),
    Mutant(
        id="M29",
        what="Adam's moments zeroed on load",
        file="training/optim.py",
        old='self._adamw.state[parameter] = {k: state[f"{k}/{name}"].to(_home(k, parameter)) for k in keys}',
        new='self._adamw.state[parameter] = {k: torch.zeros_like(state[f"{k}/{name}"]) for k in keys}',
        oracles=(STEPS + "test_resume_from_every_step_is_bitwise_the_uninterrupted_run",),
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
        old="total: Tensor = _JointLoss.apply(job, *tensors)  # type: ignore[no-untyped-call]",
        new="total = _JointLoss.apply(job, *(t if len(next_ids_N) or t is None else t.detach() for t in tensors))",
        oracles=(LOSSES + "test_no_position_gives_a_zero_that_depends_on_the_student",),
    ),
)

LOOP = (
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
        old="self.run.rewind_metrics(found.step if found else 0, model=name)",
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

COMPILING = "tests/training/test_compiling.py::"
GRAPHS = COMPILING + "test_compiled_layers_give_the_models_own_numbers_for_every_shape_from_few_graphs"

COMPILED = (
    Mutant(
        id="M513",
        what="layers stay compiled, also for generating",
        file="training/compiling.py",
        old="layer._compiled_call_impl = None",
        new="pass",
        oracles=(GRAPHS,),
    ),
    Mutant(
        id="M514",
        what="every length is compiled for itself",
        file="training/compiling.py",
        old="layer.compile(dynamic=True)",
        new="layer.compile(dynamic=False)",
        oracles=(GRAPHS,),
    ),
    Mutant(
        id="M515",
        what="that nothing can be compiled here is said at the first step",
        file="training/prepare.py",
        old="require_compiler(compute.device)",
        new="pass",
        oracles=(COMPILING + "test_without_a_compiler_it_is_said_before_anything_is_loaded",),
    ),
    Mutant(
        id="M600",
        what="memory that cuBLAS did not get ends the search for what fits",
        file="training/micro_batch.py",
        old="if not is_out_of_memory(error):",
        new='if type(error).__name__ != "OutOfMemoryError":',
        oracles=(
            "tests/training/test_micro_batch.py::test_by_trying_the_first_that_fits_is_found_from_the_whole_batch_down",
        ),
    ),
    Mutant(
        id="M516",
        what="training.compile compiles the teacher alone",
        file="verbs/train.py",
        old="models = [*(member.model for member in members), *running(prepared.teacher)] if training.compile else []",
        new="models = running(prepared.teacher) if training.compile else []",
        oracles=(COMPILING + "test_a_run_compiles_teacher_and_student",),
    ),
    Mutant(
        id="M574",
        what="what a user's function generates is compiled, layer by layer",
        file="training/fit.py",
        old="with plain(models.values()):",
        new="with plain(()):",
        oracles=(COMPILING + "test_a_callback_gets_models_that_are_not_compiled",),
    ),
)
