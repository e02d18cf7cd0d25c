"""Bugs of reach: families of models, rounded teachers, the micro-batch that fits."""

from tests.mutants.mutant import Mutant

FAMILIES = "tests/models/test_architectures.py::"
HEAD = FAMILIES + "test_our_head_gives_the_models_own_logits"
CUT = FAMILIES + "test_a_student_of_some_layers_is_the_teacher_without_the_others_and_reads_back_equal"
FIELDS = FAMILIES + "test_what_a_config_says_of_each_layer_follows_the_kept_ones"
QUANTIZED = "tests/models/test_quantized.py::"

FAMILY = (
    Mutant(
        id="M498",
        what="a teacher from nothing is followed before it knows anything",
        file="recipe/short.py",
        old='tree = _guarded(tree, from_nothing=teacher_section.get("config") is not None)',
        new="tree = _guarded(tree, from_nothing=False)",
        oracles=(
            "tests/test_recipe_families.py::"
            "test_a_teacher_from_nothing_is_trusted_by_its_progress_unless_the_term_says_otherwise",
        ),
    ),
    Mutant(
        id="M296",
        what="a model that sees the tokens to predict is taken for a causal one",
        file="models/head.py",
        old="other_BT = torch.cat([ids_BT[:, :-1], (ids_BT[:, -1:] + 1) % n_vocabulary], dim=1)",
        new="other_BT = ids_BT",
        oracles=(FAMILIES + "test_a_model_that_sees_the_tokens_to_predict_is_refused",),
    ),
    Mutant(
        id="M519",
        what="beside a long document a short one has other positions (longrope)",
        file="models/head.py",
        old="if max_length > first:",
        new="if max_length < first:",
        oracles=(
            "tests/models/test_head.py::"
            "test_windows_that_change_the_frequencies_of_the_rows_beside_them_are_refused",
        ),
    ),
    Mutant(
        id="M297",
        what="a skipped layer that returns a tuple returns a tensor",
        file="training/importance.py",
        old="return passed_through(hidden, like=self._returned[index])",
        new="return hidden",
        oracles=("tests/training/test_importance.py::"
                 "test_layers_that_return_more_than_hidden_states_are_measured_alike",),
    ),
    Mutant(
        id="M298",
        what="the probe of a micro-batch trains the run's own models",
        file="training/micro_batch.py",
        old="members = [replace(m, model=copy.deepcopy(m.model), first_step=0) for m in self.members]",
        new="members = [replace(m, model=m.model, first_step=0) for m in self.members]",
        oracles=("tests/training/test_micro_batch.py::"
                 "test_an_attempt_is_a_whole_step_and_leaves_the_models_as_they_are",),
    ),
    Mutant(
        id="M299",
        what="a mixture cannot compute in float64",
        file="models/cast.py",
        old='model.set_experts_implementation("eager")',
        new="pass",
        oracles=(HEAD + "[mixtral]",),
    ),
    Mutant(
        id="M520",
        what="documents of a row see each other, and the model is packed all the same",
        file="models/packing.py",
        old="return not any(found.values())",
        new="return True",
        oracles=(FAMILIES + "test_a_model_that_mixes_packed_documents_is_found_out_and_said[gpt_oss]",),
    ),
    Mutant(
        id="M521",
        what="a model that is not packed is given positions",
        file="data/loader.py",
        old="is_plain = not packed or (n_rows == len(windows) and min(n_tokens) == max(n_tokens))",
        new="is_plain = n_rows == len(windows) and min(n_tokens) == max(n_tokens)",
        oracles=("tests/data/test_loader.py::"
                 "test_the_layout_is_whole_rows_restarting_positions_and_no_label_on_a_first_token",),
    ),
    Mutant(
        id="M522",
        what="a config's list of layers keeps the teacher's numbers",
        file="models/layers.py",
        old="return [new for new, old in enumerate(kept) if old in value]",
        new="return [old for old in kept if old in value]",
        oracles=(FIELDS + "[qwen3_moe-mlp_only_layers-expected3]",),
    ),
    Mutant(
        id="M523",
        what="which layers are mixtures is counted anew in the student",
        file="models/layers.py",
        old="_periods_as_lists(config, n_layers=n_layers)",
        new="pass",
        oracles=(FIELDS + "[qwen2_moe-mlp_only_layers-expected4]",),
    ),
    Mutant(
        id="M524",
        what="the divisor of the logits is forgotten",
        file="models/head.py",
        old="scale=_number(config, _FACTORS, otherwise=1.0) / _number(config, _DIVISORS, otherwise=1.0),",
        new="scale=_number(config, _FACTORS, otherwise=1.0),",
        oracles=(HEAD + "[granite]",),
    ),
    Mutant(
        id="M525",
        what="the layers that see images are cut in place of those that read",
        file="models/layers.py",
        old="if isinstance(module, nn.ModuleList) and len(module) == n_layers and id(module) in inside:",
        new="if isinstance(module, nn.ModuleList) and len(module) == n_layers:",
        oracles=(CUT + "[gemma3 with images]",),
    ),
    Mutant(
        id="M526",
        what="a teacher that mixes documents is labelled packed",
        file="verbs/label.py",
        old="corpus.packed = packing.all_pack([live.model], n_vocabulary=n_vocabulary)",
        new="packing.all_pack([live.model], n_vocabulary=n_vocabulary)",
        oracles=("tests/verbs/test_label.py::"
                 "test_a_teacher_that_cannot_be_packed_is_labelled_and_trained_from_one_document_a_row",),
    ),
    Mutant(
        id="M527",
        what="a cache does not say that its teacher was rounded",
        file="verbs/label.py",
        old="quantize=recipe.teacher.quantize,",
        new="quantize=None,",
        oracles=(QUANTIZED + "test_the_record_of_a_cache_says_how_its_teacher_was_rounded",),
    ),
    Mutant(
        id="M528",
        what="a student with rounded weights is loaded",
        file="training/starts.py",
        old="quantized.refuse_student(load.load_config(section.model, section.revision), name=section.model)",
        new="pass",
        oracles=(QUANTIZED + "test_rounded_weights_are_not_trained",),
    ),
    Mutant(
        id="M529",
        what="a run that goes on looks for another micro-batch",
        file="training/prepare.py",
        old="data.micro_batch = at_once or micro_batch.of_recipe(",
        new="data.micro_batch = micro_batch.of_recipe(",
        oracles=("tests/verbs/test_options.py::"
                 "test_the_micro_batch_that_fits_is_recorded_and_a_run_that_goes_on_keeps_it",),
    ),
)  # fmt: skip
