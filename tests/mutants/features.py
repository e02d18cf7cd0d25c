"""Bugs of terms that compare layers."""

from tests.mutants.mutant import Mutant

OF, RUNS = "tests/training/test_features.py::", "tests/verbs/test_features.py::"
HIDDEN = OF + "test_hidden_states_equal_the_formula_and_so_do_all_gradients[24-cosine]"
RELATIONS = OF + "test_attention_relations_equal_the_formula_and_so_do_all_gradients[2097152]"

FEATURES = (
    Mutant(
        id="M542",
        what="hidden states compared at positions that are not trained too",
        file="losses/features/hidden_states.py",
        old="state_NW = state_BTW.flatten(0, 1).index_select(0, view.index_N)",
        new="state_NW = state_BTW.flatten(0, 1)",
        oracles=(HIDDEN,),
    ),
    Mutant(
        id="M543",
        what="relations to the documents before in a packed row",
        file="losses/features/attention_relations.py",
        old="begin_BT = (torch.arange(length) - view.positions_BT.cpu()).clamp_min(0)",
        new="begin_BT = torch.zeros(n_rows, length, dtype=torch.int64)",
        oracles=(OF + "test_packing_padding_micro_batches_and_checkpointing_change_nothing",),
    ),
    Mutant(
        id="M544",
        what="relations to positions that come later",
        file="losses/features/attention_relations.py",
        old="may_see_nm = (seen_m >= begin_n[:, None]) & (seen_m <= asking_n[:, None])",
        new="may_see_nm = (seen_m >= begin_n[:, None]) & (seen_m <= asking_n[-1])",
        oracles=(RELATIONS,),
    ),
    Mutant(
        id="M545",
        what="no gradient to the positions that are looked at",
        file="losses/features/attention_relations.py",
        old="gradient_HTd[:, block.seen] += slope_Hnm.transpose(1, 2) @ own_HTd[:, block.asking_n]",
        new="pass",
        oracles=(RELATIONS,),
    ),
    Mutant(
        id="M546",
        what="a resumed run starts with new projections",
        file="training/fit.py",
        old="peer.beside.load(found.tensors[_part(name, _BESIDE)])",
        new="pass",
        oracles=(RUNS + "test_a_run_that_was_killed_ends_in_the_same_bits",),
    ),
    Mutant(
        id="M547",
        what="a student of some of the teacher's layers follows others",
        file="training/features.py",
        old="if kept is not None and len(kept) == n_own:",
        new="if kept is None and len(kept or ()) == n_own:",
        oracles=(OF + "test_auto_takes_the_layers_that_a_student_was_made_of_else_even_ones_last_to_last",),
    ),
    Mutant(
        id="M548",
        what="a projection's gradients pile up from step to step",
        file="training/member.py",
        old="self.zero_grad()",
        new="pass",
        oracles=(OF + "test_a_resume_with_projections_is_bitwise_and_one_that_forgets_them_is_not",),
    ),
    Mutant(
        id="M549",
        what="more layers, more weight",
        file="losses/features/hidden_states.py",
        old="return torch.stack(sums).mean()",
        new="return torch.stack(sums).sum()",
        oracles=(HIDDEN,),
    ),
    Mutant(
        id="M477",
        what="doctor and plan silent about a layer that a model has not",
        file="planning/of_recipe.py",
        old="features.require_layers(term.layers, n_own=n_own, n_teachers=n_teachers, name=term.name)",
        new="del n_own, n_teachers",
        oracles=(RUNS + "test_a_layer_that_a_model_has_not_is_found_before_anything_is_loaded",),
    ),
    Mutant(
        id="M478",
        what="two sentences for a setting that is a number or auto",
        file="recipe/fields.py",
        old='Count | Literal["auto"], PlainValidator(_count_or_auto, json_schema_input_type=Count | Literal["auto"])',
        new='Count | Literal["auto"], Field()',
        oracles=("tests/test_recipe_mistakes.py::test_a_mistake_is_one_line_with_its_path_and_the_way_out",),
    ),
    Mutant(
        id="M604",
        what="the narrow start of a comparison without what it was made of",
        file="verbs/contest_runs.py",
        old="save.save_model(prepared.students[roles.STUDENT], prepared.tokenizer, path, beside=origin)",
        new="save.save_model(prepared.students[roles.STUDENT], prepared.tokenizer, path)",
        oracles=(RUNS + "test_every_run_of_a_comparison_compares_the_layers_and_channels_that_train_does",),
    ),
    Mutant(
        id="M605",
        what="layers paired by the origin of another teacher",
        file="models/origin.py",
        old="return origin if origin.teacher == extent_of(teacher) else Origin()",
        new="return origin",
        oracles=(RUNS + "test_every_run_of_a_comparison_compares_the_layers_and_channels_that_train_does",),
    ),
)
