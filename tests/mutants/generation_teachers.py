"""Bugs of teachers that write text: a training that buys, a model on this machine, several teachers."""

from tests.mutants.mutant import Mutant

BRING = "tests/verbs/test_bring.py::"

GENERATION_TEACHERS = (
    Mutant(
        id="M350",
        what="a training that buys without a cap",
        file="verbs/bring.py",
        old="if not recipe.generate.has_cap:",
        new="if False:",
        oracles=(BRING + "test_without_a_cap_nothing_is_bought_and_the_error_names_the_command",),
    ),
    Mutant(
        id="M351",
        what="a training that buys although it was told not to ask",
        file="verbs/bring.py",
        old="if n_there == n_asked or not ask:",
        new="if n_there == n_asked:",
        oracles=(BRING + "test_the_library_trains_from_a_dict_and_asks_nothing_when_told",),
    ),
    Mutant(
        id="M352",
        what="answers bought for a folder that cannot be trained in",
        file="verbs/train.py",
        old="RunDirectory(folder).refuse_strangers()",
        new="pass",
        oracles=(BRING + "test_what_would_stop_the_training_is_said_before_anything_is_bought",),
    ),
)
