"""Bugs of the cache's codecs of fixed width, and of the measured gradient error."""

from tests.mutants.mutant import Mutant

TOPK = "tests/cache/codecs/test_topk.py::"
ERROR = "tests/cache/test_error.py::"

CODECS = (
    Mutant(
        id="M230",
        what="the tail of a top-k cache ignored when it is read",
        file="cache/codecs/topk.py",
        old="all_NS = torch.log_softmax(torch.cat([logp_NK, tail_N[:, None]], -1).float(), dim=-1)",
        new="all_NS = torch.log_softmax(torch.cat([logp_NK, tail_N[:, None] - math.inf], -1).float(), dim=-1)",
        oracles=(TOPK + "test_the_kept_and_the_tail_are_the_teachers[7]",),
    ),
    Mutant(
        id="M231",
        what="kept probabilities of a top-k cache normalised again beside their tail",
        file="cache/codecs/topk.py",
        old="kept_NK, tail_N = all_NS[:, :-1], all_NS[:, -1]",
        new="kept_NK, tail_N = all_NS[:, :-1].log_softmax(-1), all_NS[:, -1]",
        oracles=(TOPK + "test_the_kept_and_the_tail_are_the_teachers[7]",),
    ),
    Mutant(
        id="M232",
        what="the tail of a top-k cache as log(1 - sum of the kept)",
        file="cache/codecs/topk.py",
        old="tail_C = logp_CV.scatter_(-1, ids_CK, -math.inf).logsumexp(-1)",
        new="tail_C = torch.log(1 - kept_CK.exp().sum(-1))",
        oracles=(TOPK + "test_a_tail_that_float32_cannot_see_in_one_minus_the_sum_is_kept",),
    ),
    Mutant(
        id="M56",
        what="the rounding of float16 bounded without its absolute term",
        file="cache/codecs/dense.py",
        old="return 2.0**-11 * logp.abs() + 2.0**-25",
        new="return 2.0**-11 * logp.abs()",
        oracles=("tests/cache/codecs/test_dense.py::test_float16_rounds_by_its_relative_bound_and_2_to_the_minus_25",),
    ),
    Mutant(
        id="M233",
        what="width of an id from the vocabulary's size minus two: the last id of 2**n + 1 wraps",
        file="cache/codecs/_row.py",
        old="return max(1, (n_vocabulary - 1).bit_length())",
        new="return max(1, (n_vocabulary - 2).bit_length())",
        oracles=("tests/cache/codecs/test_contract.py::test_ids_of_large_vocabularies_never_wrap[65537-topk]",),
    ),
    Mutant(
        id="M234",
        what="the hash of the tokens not compared: a foreign row is read",
        file="cache/codecs/_row.py",
        old='if int.from_bytes(body[_HASH].tobytes(), "little") != _token_hash(next_ids_n):',
        new='if int.from_bytes(body[_HASH].tobytes(), "little") < 0:',
        oracles=("tests/cache/codecs/test_contract.py::test_one_foreign_token_in_a_row_is_refused[hidden]",),
    ),
    Mutant(
        id="M235",
        what="a row's numbers made beside its neighbours': matrix products round by shape",
        file="cache/codecs/_row.py",
        old="for row in slices_of(positions):",
        new="for row in [slice(0, len(positions))]:",
        oracles=("tests/cache/codecs/test_dense.py::test_a_rows_bytes_do_not_depend_on_its_neighbours",),
    ),
    Mutant(
        id="M236",
        what="the measured error leaves a merged tail where it is instead of spreading it over the student",
        file="cache/error.py",
        old="return (p_NK - share_N[:, None] * q_NK).reshape(-1), share_N + missing_N",
        new="return p_NK.reshape(-1), missing_N",
        oracles=(ERROR + "test_top_k_with_tail_is_seen_through_the_gradient_of_the_coarse_kl[unigram]",),
    ),
    Mutant(
        id="M237",
        what="the measured error of the mean taken as the mean of the errors",
        file="cache/error.py",
        old="batch=self._error_sum_D.norm().item() / self._n / gradient_rms,",
        new="batch=(self._error_squares / self._n) ** 0.5 / gradient_rms,",
        oracles=(ERROR + "test_a_sample_is_its_weights[unigram]",),
    ),
)
