"""Whole rows under one model, against each alone."""

import numpy as np
import pytest
import torch

from tests import tiny
from tutelage.data.tokenize import TokenRow
from tutelage.evaluation.likelihood import row_logp


def test_the_log_probability_of_rows_is_that_of_each_alone_in_float64():
    model = tiny.llama(seed=3, vocabulary=40)
    draw = np.random.default_rng(0)
    rows = [TokenRow(draw.integers(2, 40, n).astype(np.uint32), draw.random(n) < 0.7) for n in (9, 3, 17, 5, 2, 12)]
    found = row_logp(model, rows, n_vocabulary=40)
    for i, row in enumerate(rows):
        logits = model(input_ids=torch.tensor([row.ids.tolist()])).logits[0].detach()
        terms = [
            float(torch.log_softmax(logits[t - 1], -1)[int(row.ids[t])])
            for t in range(1, len(row.ids))
            if row.loss_mask[t]
        ]
        assert found.logp_R[i] == pytest.approx(sum(terms), abs=1e-12) and found.n_tokens_R[i] == len(terms)
