"""Bugs of students that are made of the teacher's weights, or learn beside their own."""

from tests.mutants.mutant import Mutant

WIDTH = "tests/models/test_width.py::"
NOTHING = WIDTH + "test_what_carries_nothing_is_taken_out_and_the_logits_stay"
ADAPTERS = "tests/models/test_adapters.py::"

MADE = (
    Mutant(
        id="M500",
        what="the epsilon of the norms shrinks where it should grow",
        file="models/width.py",
        old="text.rms_norm_eps = text.rms_norm_eps * own.hidden / sizes.hidden",
        new="text.rms_norm_eps = text.rms_norm_eps * sizes.hidden / own.hidden",
        oracles=(NOTHING + "[llama]",),
    ),
    Mutant(
        id="M501",
        what="a norm that multiplies by 1 + weight scaled as if by its weight",
        file="models/width.py",
        old="weights[name] = (weights[name] + offset) * factors[norm] - offset",
        new="weights[name] = weights[name] * factors[norm]",
        oracles=(NOTHING + "[gemma2]",),
    ),
    Mutant(
        id="M502",
        what="a tied head keeps the factor of its embedding",
        file="models/width.py",
        old="factors[anatomy.final_norm] /= grown",
        new="factors[anatomy.final_norm] *= 1.0",
        oracles=(NOTHING + "[gemma2]",),
    ),
    Mutant(
        id="M503",
        what="heads counted across groups instead of inside them",
        file="training/widths.py",
        old="group * per_group + head",
        new="head * anatomy.sizes.groups + group",
        oracles=(WIDTH + "test_as_many_heads_of_each_group_stay_and_the_best_of_them",),
    ),
    Mutant(
        id="M504",
        what="keys and values of the first groups, whichever heads were kept",
        file="models/width.py",
        old='heads = kept.heads[layer] if axis == "heads" else _groups(kept.heads[layer], anatomy)',
        new='heads = kept.heads[layer] if axis == "heads" else range(len(_groups(kept.heads[layer], anatomy)))',
        oracles=(NOTHING + "[llama]",),
    ),
    Mutant(
        id="M505",
        what="norms left as they were though they average over fewer channels",
        file="training/widths.py",
        old="factors_M = (shares_M * anatomy.sizes.hidden / sizes.hidden).sqrt()",
        new="factors_M = torch.ones_like(shares_M)",
        oracles=(NOTHING + "[llama]",),
    ),
    Mutant(
        id="M506",
        what="merging changes the model that goes on training",
        file="models/adapters.py",
        old="plain = copy.deepcopy(model)",
        new="plain = model",
        oracles=(ADAPTERS + "test_an_adapted_model_begins_as_it_was_and_is_merged_into_what_it_became[llama-False]",),
    ),
    Mutant(
        id="M507",
        what="an optimizer for the weights that stay",
        file="training/precision.py",
        old="self.parameters = learned_parameters(model)",
        new="self.parameters = dict(model.named_parameters())",
        oracles=(ADAPTERS + "test_only_adapters_learn_have_moments_and_stand_in_a_checkpoint",),
    ),
    Mutant(
        id="M508",
        what="the gradient of a head that learns left out",
        file="losses/gradients.py",
        old="if not weight_VD.requires_grad:",
        new="if weight_VD.requires_grad:",
        oracles=(ADAPTERS + "test_the_gradient_of_an_adapter_is_that_of_a_model_whose_head_learns_too",),
    ),
    Mutant(
        id="M509",
        what="the same random share whatever the seed",
        file="models/student.py",
        old='torch.manual_seed(derive_seed(seed, f"{name} random share"))',
        new='torch.manual_seed(derive_seed(0, f"{name} random share"))',
        oracles=(ADAPTERS + "test_a_start_is_as_far_between_its_weights_and_random_ones_as_asked",),
    ),
    Mutant(
        id="M601",
        what="a teacher that is stored with rounded weights is narrowed",
        file="training/starts.py",
        old='quantized.refuse_copy(makers.teacher.config, what="student.width copies channels")',
        new="pass",
        oracles=("tests/models/test_quantized.py::test_no_student_is_made_of_weights_that_are_stored_rounded",),
    ),
)
