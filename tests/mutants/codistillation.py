"""Bugs of models that learn together."""

from tests.mutants.mutant import Mutant

O6 = "tests/oracles/test_codistillation.py::"

CODISTILLATION = (
    Mutant(
        id="M45",
        what="a teacher's product overwritten before its students have read it",
        file="losses/job.py",
        old="order.append(chosen)",
        new="order.insert(0, chosen)",
        oracles=(O6 + "test_the_joint_loss_has_the_gradients_of_autograd_on_whole_logits",),
    ),
    Mutant(
        id="M46",
        what="one stream of dropout for all models",
        file="training/trainer.py",
        old='torch.manual_seed(derive_seed(self._seed, "dropout", name, self.step, number))',
        new="name == next(iter(self.peers)) and torch.manual_seed(derive_seed(self._seed, self.name, number))",
        oracles=(O6 + "test_the_order_of_the_models_changes_nothing[dtype0]",),
    ),
    Mutant(
        id="M280",
        what="a term of weight 0 shares the pass that forms the gradient",
        file="losses/job.py",
        old="live = [t for t in part.terms if part.scales[t.name].factor != 0.0] if self.needs_gradient else []",
        new="live = list(part.terms) if self.needs_gradient else []",
        oracles=(
            O6 + "test_with_soft_weight_0_each_model_is_its_own_run_bit_for_bit_and_the_soft_term_is_still_measured",
        ),
    ),
    Mutant(
        id="M281",
        what="equals that read what the other has become in this step",
        file="losses/groups.py",
        old="self.whole[name] = product_NV.clone()",
        new="pass",
        oracles=(O6 + "test_the_joint_loss_has_the_gradients_of_autograd_on_whole_logits",),
    ),
    Mutant(
        id="M282",
        what="of two sources only the last one's gradient",
        file="losses/groups.py",
        old="summed_NV += gradient_NV",
        new="pass",
        oracles=(O6 + "test_the_joint_loss_has_the_gradients_of_autograd_on_whole_logits",),
    ),
    Mutant(
        id="M283",
        what="trust where the student is the better one",
        file="losses/gates.py",
        old="trusted_N = truth(student_product_NV, student_head, next_ids_N) < truth(",
        new="trusted_N = truth(student_product_NV, student_head, next_ids_N) > truth(",
        oracles=(O6 + "test_the_joint_loss_has_the_gradients_of_autograd_on_whole_logits",),
    ),
    Mutant(
        id="M284",
        what="a frozen teacher that is updated",
        file="training/trainer.py",
        old="training = [peer for peer in self.peers.values() if peer.member.is_training(self.step)]",
        new="training = list(self.peers.values())",
        oracles=(O6 + "test_a_teacher_that_freezes_teaches_on_as_it_is",),
    ),
    Mutant(
        id="M285",
        what="a late student's schedule counted from the run's first step",
        file="training/member.py",
        old="self.optimizer.update(step - self.member.first_step)",
        new="self.optimizer.update(step)",
        oracles=(O6 + "test_a_late_student_is_a_run_of_its_own_over_the_later_data",),
    ),
    Mutant(
        id="M286",
        what="the running loss forgotten when a run goes on",
        file="training/fit.py",
        old='self.trainer.running = dict(found.state["running"])',
        new="pass",
        oracles=("tests/oracles/test_killed_run.py::test_the_running_loss_of_a_teacher_survives_a_stop",),
    ),
    Mutant(
        id="M287",
        what="an ensemble that averages logarithms",
        file="types.py",
        old="return torch.stack(each).logsumexp(0)",
        new="return torch.log_softmax(torch.stack(each).mean(0), -1)",
        oracles=(O6 + "test_an_ensemble_teaches_the_average_of_its_probabilities",),
    ),
    Mutant(
        id="M288",
        what="leftovers of killed processes cleared in the run's folder alone",
        file="rundir.py",
        old="for folder, _, _ in os.walk(self.path):  # from above: what is removed here is not entered",
        new="for folder in (self.path,):",
        oracles=(
            "tests/test_rundir.py::test_the_next_process_clears_what_a_killed_one_left_in_any_of_the_runs_folders",
        ),
    ),
    Mutant(
        id="M573",
        what="a new field of the recipe ends every run of an earlier version",
        file="rundir.py",
        old="differences = _differences(_with_new_fields(stored), _plain(recipe))",
        new="differences = _differences(stored, _plain(recipe))",
        oracles=("tests/test_rundir.py::test_a_run_of_a_version_that_lacked_a_field_goes_on_by_the_fields_default",),
    ),
)
