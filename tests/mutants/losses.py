"""Bugs of the divergences and of the closed form."""

from tests.mutants.mutant import Mutant

LOSSES = "tests/losses/test_oracles.py::"
FUSED = "tests/losses/test_fused.py::"

DIVERGENCES = (
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
        file="losses/plain.py",
        after="def term_sums",
        old="teacher_logp_NV = log_softmax(teacher_logits_NV, temperature=temperature)",
        new="teacher_logp_NV = log_softmax(teacher_logits_NV)",
        oracles=(LOSSES + "test_chunked_loss_equals_the_naive_one[5-None-reverse_kl]",),
    ),
    Mutant(
        id="M7",
        what="softmax in bfloat16",
        file="losses/support.py",
        old="wide_NV = logits_NV.to(wide(logits_NV.dtype))",
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

FUSED = (
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
