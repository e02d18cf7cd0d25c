"""Bugs of whole runs: what is saved, forked and measured again."""

from tests.mutants.mutant import Mutant

TRAIN = "tests/verbs/test_train.py::"
OPTIONS = "tests/verbs/test_options.py::"

RUNS = (
    Mutant(
        id="M62",
        what="an early stop saves the last weights, not the best",
        file="training/fit.py",
        old="if self.plan.patience is None or self.progress.best_step in (None, self.trainer.step):",
        new="if True:",
        oracles=(OPTIONS + "test_a_run_that_no_longer_improves_stops_and_its_best_weights_are_saved",),
    ),
    Mutant(
        id="M63",
        what="a run measured again in another dtype than it was saved in",
        file="verbs/evaluate.py",
        old='return on_path(load.load_model(str(run.model(name)), dtype="auto", device="cpu"), prepared)',
        new='return on_path(load.load_model(str(run.model(name)), dtype="float32", device="cpu"), prepared)',
        oracles=("tests/verbs/test_evaluate_show.py::test_a_run_measured_again_gives_the_same_numbers[float64]",),
    ),
    Mutant(
        id="M64",
        what="a fork that goes on reads its source again",
        file="verbs/fork.py",
        old="if started.source is None or start_from_kept(prepared, started.run):",
        new="if started.source is None:",
        oracles=("tests/verbs/test_resume_cli.py::test_a_fork_that_was_killed_goes_on_though_its_source_has_gone",),
    ),
    Mutant(
        id="M602",
        what="an unfinished run with adapters is sent to a fork, which is refused",
        file="verbs/fork.py",
        old="return not _adapted(recipe) and not _mixed(recipe)",
        new="return True",
        oracles=(
            "tests/verbs/test_students.py::"
            "test_an_unfinished_one_with_adapters_and_another_input_is_not_sent_to_a_fork",
        ),
    ),
    Mutant(
        id="M65",
        what="the student ends on the teacher's token alone",
        file="training/prepare.py",
        old="if len(ids) > 1:",
        new="if False:",
        oracles=(TRAIN + "test_a_student_that_ends_otherwise_is_saved_with_both_ends",),
    ),
)
