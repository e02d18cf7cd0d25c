"""Bugs of the threshold codec: of its sampling, which must be unbiased, and of its coder."""

from tests.mutants.mutant import Mutant

SAMPLING = "tests/cache/test_sampling.py::"
THRESHOLD = "tests/cache/codecs/test_threshold.py::"
CONTRACT = "tests/cache/codecs/test_contract.py::"

THRESHOLD_CODEC = (
    Mutant(
        id="M260",
        what="one draw for all positions of a row",
        file="cache/sampling.py",
        old="index_N = np.arange(len(positions)) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)",
        new="index_N = np.zeros(len(positions), np.int64)",
        oracles=(SAMPLING + "test_draws_differ_by_position_and_row_and_are_uniform",),
    ),
    Mutant(
        id="M261",
        what="draws indexed across the rows of a call: a row's bytes depend on its neighbours",
        file="cache/sampling.py",
        old="index_N = np.arange(len(positions)) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)",
        new="index_N = np.arange(len(positions))",
        oracles=(CONTRACT + "test_a_row_has_the_same_bytes_alone_as_beside_others[threshold]",),
    ),
    Mutant(
        id="M262",
        what="heads rounded to the nearest grain, compiled",
        file="cache/_sampling_cpu.py",
        old="here = np.int64(np.floor(cumulative + draw))",
        new="here = before + np.int64(np.floor(e[ids[i]] * per_grain + 0.5))",
        oracles=(SAMPLING + "test_the_mean_over_all_draws_is_the_teachers_distribution[11-4-many heads-compiled]",),
    ),
    Mutant(
        id="M263",
        what="heads rounded without the draw, reference",
        file="cache/sampling.py",
        old="rounded_CV = (others_CV.cumsum(-1) + draw_C1).floor()",
        new="rounded_CV = (others_CV.cumsum(-1) + 0.5).floor()",
        oracles=(SAMPLING + "test_the_mean_over_all_draws_is_the_teachers_distribution[11-4-many heads-reference]",),
    ),
    Mutant(
        id="M264",
        what="a pick weighs one grain instead of tau",
        file="cache/_sampling_cpu.py",
        old="units_M[at + n_heads : at + n_heads + n_tail] = grains",
        new="units_M[at + n_heads : at + n_heads + n_tail] = 1",
        oracles=(SAMPLING + "test_the_mean_over_all_draws_is_the_teachers_distribution[7-2-sure-compiled]",),
    ),
    Mutant(
        id="M265",
        what="the largest head rounded like the others instead of taking the rest",
        file="cache/_sampling_cpu.py",
        old="units[0] = left",
        new="units[0] = np.int64(np.floor(e[ids[0]] * per_grain + draw))",
        oracles=(SAMPLING + "test_weights_are_whole_never_negative_and_sum_to_one[two heads-compiled]",),
    ),
    Mutant(
        id="M266",
        what="tokens of exactly tau or more taken for the tail",
        file="cache/sampling.py",
        old="is_head_CV = p_CV * m >= 1.0",
        new="is_head_CV = p_CV * m >= 2.0",
        oracles=(SAMPLING + "test_heads_are_the_tokens_of_at_least_tau_and_picks_weigh_tau",),
    ),
    Mutant(
        id="M267",
        what="temperature ignored by the compiled sampling",
        file="cache/sampling.py",
        old="factor = head.scale / temperature",
        new="factor = head.scale",
        oracles=(SAMPLING + "test_the_compiled_way_picks_what_the_reference_picks[2.0-dtype0]",),
    ),
    Mutant(
        id="M268",
        what="the witness taken upside down",
        file="cache/codecs/threshold.py",
        old="witness_N = _row.witness_codes(drawn.next_logp_N).astype(np.int64)",
        new="witness_N = 255 - _row.witness_codes(drawn.next_logp_N).astype(np.int64)",
        oracles=(THRESHOLD + "test_the_witness_is_stored_exactly_where_the_next_token_is_no_head",),
    ),
    Mutant(
        id="M269",
        what="the final state of a row not compared: foreign tokens decode to anything",
        file="cache/set_coder.py",
        old="if done < n or state != _first_state(current_ids_n, next_ids_n) or words[1 : 1 + top].any():",
        new="if done < n:",
        oracles=(THRESHOLD + "test_a_foreign_token_at_the_last_position_is_refused",),
    ),
    Mutant(
        id="M270",
        what="the checksum of a row not compared",
        file="cache/set_coder.py",
        old="if _seal(raw[_SEAL_BYTES:]) != raw[:_SEAL_BYTES]:",
        new="if False:",
        oracles=(THRESHOLD + "test_every_flipped_byte_is_seen",),
    ),
    Mutant(
        id="M271",
        what="the order of a set not given back: the next symbol is read from other bits",
        file="cache/_members_cpu.py",
        old="x, top = push_uniform(x, top, words, value, _RADIX[j])",
        new="x, top = push_uniform(x, top, words, value - before, _RADIX[j])",
        oracles=(THRESHOLD + "test_a_row_is_coded_without_the_row_before",),
    ),
    Mutant(
        id="M272",
        what="a token may escape twice: what stands at the second one's place is whatever memory held",
        file="cache/_members_cpu.py",
        old="if slot_of(states, token) > 0:",
        new="if token < 0:",
        oracles=(THRESHOLD + "test_a_set_with_one_token_twice_is_refused",),
    ),
    Mutant(
        id="M273",
        what="the history of the row before: a row depends on its neighbours",
        file="cache/_set_coder_cpu.py",
        old="return (state & PAST_FIELD) + (age << 3) if last > base else state & CLASS_FIELD",
        new="return (state & PAST_FIELD) + (age << 3) if last > 0 else state & CLASS_FIELD",
        oracles=(THRESHOLD + "test_a_row_is_coded_without_the_row_before",),
    ),
)
