"""Bugs of the losses on stored targets."""

from tests.mutants.mutant import Mutant

STORED = "tests/losses/test_stored_targets.py::"
SAMPLED = "tests/losses/test_fused_sampled.py::"
TOP_K = "tests/losses/test_fused_top_k.py::"
REFUSALS = "tests/losses/test_refusals.py::"
CLOSED = "test_a_sample_gives_the_soft_cross_entropy_and_its_closed_gradient"
DEFINED = "test_losses_and_gradient_are_those_of_the_definition"

STORED_TARGETS = (
    Mutant(
        id="M14",
        what="stored targets shifted by one position",
        file="losses/targets.py",
        old="first, last = int(edges[chunk.start]), int(edges[chunk.stop])",
        new="first, last = int(edges[min(chunk.start + 1, chunk.stop)]), int(edges[chunk.stop])",
        oracles=(STORED + CLOSED + "[1.0-5-fused]",),
    ),
    Mutant(
        id="M200",
        what="offsets of a chunk not counted from its own first entry",
        file="losses/targets.py",
        old="offsets=stored.offsets[chunk.start : chunk.stop + 1] - first,",
        new="offsets=stored.offsets[chunk.start : chunk.stop + 1],",
        oracles=(SAMPLED + "test_chunks_of_the_compiled_loop_see_their_own_entries",),
    ),
    Mutant(
        id="M201",
        what="weights of a sample ignored",
        file="losses/stored.py",
        old="return -(targets.weights_M.to(picked_M.dtype) * picked_M).sum()",
        new="return -picked_M.sum()",
        oracles=(STORED + CLOSED + "[1.0-5-plain]",),
    ),
    Mutant(
        id="M202",
        what="sample: the student at temperature 1",
        file="losses/stored.py",
        after="def soft_cross_entropy",
        old="student_logp_NV = log_softmax(student_logits_NV, temperature=targets.temperature)",
        new="student_logp_NV = log_softmax(student_logits_NV)",
        oracles=(STORED + CLOSED + "[2.0-5-plain]",),
    ),
    Mutant(
        id="M203",
        what="top-k: the student at temperature 1",
        file="losses/stored.py",
        after="def merged_divergence",
        old="student_logp_NV = log_softmax(student_logits_NV, temperature=targets.temperature)",
        new="student_logp_NV = log_softmax(student_logits_NV)",
        oracles=(STORED + "test_top_k_with_a_tail_is_the_divergence_on_the_merged_support[reverse_kl-5-2.0]",),
    ),
    Mutant(
        id="M204",
        what="top-k: the tail's gradient dropped",
        file="losses/stored.py",
        old="gradient_NV = (student_logp_NV + log_ratio_N1).exp_()",
        new="gradient_NV = torch.zeros_like(student_logp_NV)",
        oracles=(STORED + "test_top_k_with_a_tail_is_the_divergence_on_the_merged_support[forward_kl-5-1.0]",),
    ),
    Mutant(
        id="M205",
        what="closed form of a sample: temperature applied to the loss alone",
        file="losses/fused_sampled.py",
        old="soft=soft_scale * student_head_scale / sampled.temperature,",
        new="soft=soft_scale * student_head_scale,",
        oracles=(SAMPLED + DEFINED,),
    ),
    Mutant(
        id="M206",
        what="closed form of a sample, plain: weights subtracted twice",
        file="losses/fused_sampled.py",
        old="gradient_NV.index_put_((rows_M, sampled.ids_M), -weights_M, accumulate=True)",
        new="gradient_NV.index_put_((rows_M, sampled.ids_M), -2 * weights_M, accumulate=True)",
        oracles=(STORED + CLOSED + "[1.0-5-fused]",),
    ),
    Mutant(
        id="M207",
        what="closed form of a sample: a lost weight makes the sum 1 all the same",
        file="losses/fused_sampled.py",
        old="gradient_NV = logp_NV.exp_().mul_(mass_N[:, None])",
        new="gradient_NV = logp_NV.exp_()",
        oracles=(SAMPLED + "test_a_position_without_entries_asks_nothing",),
    ),
    Mutant(
        id="M208",
        what="a sampled cache serves every divergence",
        file="losses/stored.py",
        old='if kind == "sample" and term.needs_teacher and term.divergence != "forward_kl":',
        new="if False:",
        oracles=(REFUSALS + "test_a_sample_serves_nothing_but_forward_kl_and_the_truth",),
    ),
    Mutant(
        id="M209",
        what="a cache of one temperature read at another",
        file="losses/stored.py",
        old="if asked != temperature:",
        new="if False:",
        oracles=(REFUSALS + "test_the_loss_refuses_the_temperature_of_a_step",),
    ),
    Mutant(
        id="M210",
        what="a soft cross-entropy logged as a KL",
        file="losses/stored.py",
        old='return "soft_cross_entropy" if kind == "sample" and term.divergence == "forward_kl" else term.name',
        new="return term.name",
        oracles=(
            "tests/training/test_trainer.py::"
            "test_a_sample_is_logged_as_soft_cross_entropy_and_whole_targets_as_forward_kl",
        ),
    ),
)

COMPILED_SAMPLED = (
    Mutant(
        id="M211",
        what="compiled loop of a sample: the weights of a row stay for the next",
        file="losses/_fused_sampled_cpu.py",
        after="write_row(gradient_NV[i]",
        old="e[TAKEN, ids[j]] = 0",
        new="e[TAKEN, ids[j]] += 0",
        oracles=(SAMPLED + DEFINED + "[compiled-0-1.0-torch.float32]",),
    ),
    Mutant(
        id="M212",
        what="compiled loop of a sample: weights subtracted twice",
        file="losses/_fused_sampled_cpu.py",
        old="out[token] = narrow(value - e[TAKEN, token], out[token])",
        new="out[token] = narrow(value - e[TAKEN, token] - e[TAKEN, token], out[token])",
        oracles=(SAMPLED + DEFINED + "[compiled-0-1.0-torch.float32]",),
    ),
    Mutant(
        id="M213",
        what="compiled loop of a top k: the tail as 1 less the kept ones",
        file="losses/_fused_top_k_cpu.py",
        old="return np.log(total) - np.log(state[3])",
        new="return np.log(np.float64(1) - kept.sum() / state[3] + 0 * total)",
        oracles=(TOP_K + "test_the_tail_of_a_sure_student_is_summed_and_not_taken_from_one",),
    ),
    Mutant(
        id="M214",
        what="compiled loop of a top k: the tail's gradient dropped",
        file="losses/_fused_top_k_cpu.py",
        old="mass, ratio = mass + np.exp(logp), np.exp(log_ratio)",
        new="mass, ratio = mass + np.exp(logp), 0.0",
        oracles=(TOP_K + DEFINED + "[2-0-1.0-torch.float32]",),
    ),
)
