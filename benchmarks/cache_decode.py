"""What the threshold codec costs: decoding on one core, sampling and encoding beside the teacher's bare forward.

    python -m benchmarks.cache_decode --teacher FOLDER [--m 25] [--windows 80]

For one m, and for the m that fits in the 16 bytes a token that `tutelage label` takes unless told otherwise.
Python's own documentation in windows of 512 tokens; tables fitted on the first half, everything measured on the second.
`decode_process` is processor time of the calling thread over whole calls; `decode_best_row` sums each row's best of all
rounds, which is the figure least touched by neighbours on the same cores.  Writing is `encode` less the head's product,
which the forward makes anyway; `forward` is trunk and product in bfloat16.
"""

import argparse
import random
import time
from typing import Any  # results are JSON

import numpy as np
import torch

from benchmarks import measure
from tutelage.cache.codec import Budget, Encoded, Positions, Sample
from tutelage.cache.codecs import threshold
from tutelage.cache.sampling import products, sample
from tutelage.data.standard_library import read_docs
from tutelage.models.head import head_of, trunk
from tutelage.models.load import load_model, load_tokenizer
from tutelage.types import Head, TokenView

LENGTH, ROUNDS, DEFAULT_BYTES = 512, 7, 16.0


def rows_of(ids_RT: torch.Tensor) -> Positions:
    n_rows, length = ids_RT.shape
    return Positions(
        current_ids_N=ids_RT[:, :-1].reshape(-1).numpy(),
        next_ids_N=ids_RT[:, 1:].reshape(-1).numpy(),
        counts_R=np.full(n_rows, length - 1),
        seeds_R=np.arange(n_rows, dtype=np.uint64),
    )


def windows(teacher: str, n_windows: int) -> torch.Tensor:
    """Token ids [R, T] of documentation, documents one after the other."""
    tokenizer = load_tokenizer(teacher)
    documents = [tokenizer(e.text, add_special_tokens=False)["input_ids"] for e in read_docs("docs")]
    random.Random(0).shuffle(documents)
    flat = [token for document in documents for token in (*document, tokenizer.eos_token_id)]
    rows = [flat[at : at + LENGTH] for at in range(0, len(flat) - LENGTH, LENGTH)]
    random.Random(1).shuffle(rows)
    return torch.tensor(rows[:n_windows])


@torch.no_grad()
def labelled(model: Any, ids_RT: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Hidden states [N, D], and the trunk's seconds."""
    started, parts = time.thread_time(), []
    for ids_BT in ids_RT.split(4):
        parts.append(trunk(model, TokenView.of(ids_BT, ids_BT))[:, :-1].flatten(0, 1))
    return torch.cat(parts), time.thread_time() - started


def decoding(encoded: Encoded, positions: Positions, settings: Any, tables: Any, n_vocabulary: int) -> dict[str, float]:
    """Tokens a second: whole calls, and the best of each row."""
    data = [np.frombuffer(row, np.uint8) for row in encoded.rows]
    ends = np.cumsum(positions.counts_R)
    whole_s, best_R = [], np.full(len(data), np.inf)
    more = {"n_vocabulary": n_vocabulary, "temperature": 1.0, "settings": settings, "tables": tables}
    for _ in range(ROUNDS):
        started = time.thread_time()
        threshold.decode(data, positions=positions, **more)
        whole_s.append(time.thread_time() - started)
        for row, (end, n) in enumerate(zip(ends, positions.counts_R, strict=True)):
            place = slice(end - n, end)
            alone = Positions(
                current_ids_N=positions.current_ids_N[place], next_ids_N=positions.next_ids_N[place],
                counts_R=positions.counts_R[row : row + 1], seeds_R=positions.seeds_R[row : row + 1],
            )  # fmt: skip
            started = time.perf_counter()
            threshold.decode(data[row : row + 1], positions=alone, **more)
            best_R[row] = min(best_R[row], time.perf_counter() - started)
    n = len(positions)
    return {
        "decode_process_tok_per_s": n / float(np.median(whole_s[1:])),
        "decode_best_row_tok_per_s": n / float(best_R.sum()),
    }


def writing(hidden_ND: torch.Tensor, positions: Positions, *, head: Head, settings: Any, tables: Any) -> dict[str, Any]:
    """Microseconds a token of the product, of sampling and of coding; medians of rounds."""
    spent: dict[str, list[float]] = {"product": [], "product_and_sampling": [], "all": []}
    m, grains = threshold.grain_settings(settings)
    for _ in range(3):
        started = time.thread_time()
        for _ in products(hidden_ND, head=head):
            pass
        spent["product"].append(time.thread_time() - started)
        started = time.thread_time()
        sample(hidden_ND, head=head, positions=positions, temperature=1.0, m=m, grains=grains)
        spent["product_and_sampling"].append(time.thread_time() - started)
        started = time.thread_time()
        threshold.encode(hidden_ND, head=head, positions=positions, temperature=1.0, settings=settings, tables=tables)
        spent["all"].append(time.thread_time() - started)
    return {f"{name}_us_per_tok": float(np.median(values)) / len(positions) * 1e6 for name, values in spent.items()}


def measured(budget: Budget, hidden_ND: torch.Tensor, ids_RT: torch.Tensor, *, head: Head, trunk_s: float) -> Any:
    """All figures of one budget: fitted on the first half of the rows, measured on the second."""
    half = len(ids_RT) // 2
    first, second = rows_of(ids_RT[:half]), rows_of(ids_RT[half:])
    taught = Sample(hidden_ND=hidden_ND[: len(first)], head=head, positions=first)
    fitted = threshold.fit(taught, budget=budget, temperature=1.0)
    settings, tables, rest_ND = fitted.settings, fitted.tables, hidden_ND[len(first) :]
    encoded = threshold.encode(rest_ND, head=head, positions=second, temperature=1.0, settings=settings, tables=tables)
    cost = writing(rest_ND, second, head=head, settings=settings, tables=tables)
    forward_us = trunk_s / len(hidden_ND) * 1e6 + cost["product_us_per_tok"]
    added_us = cost["all_us_per_tok"] - cost["product_us_per_tok"]
    return {
        "m": settings["m"],
        "bytes_per_token": sum(map(len, encoded.rows)) / len(second),
        "tables_bytes": sum(t.numel() * t.element_size() for t in tables.values()),
        "n_positions": len(second),
        **decoding(encoded, second, settings, tables, head.n_vocabulary),
        **cost,
        "forward_us_per_tok": forward_us,
        "writing_over_forward": added_us / forward_us,
        "why": fitted.why,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--m", type=int, default=25)
    parser.add_argument("--windows", type=int, default=80)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment = measure.environment({"m": arguments.m, "windows": arguments.windows, "length": LENGTH})
    ids_RT = windows(arguments.teacher, arguments.windows)
    model = load_model(arguments.teacher, dtype="bfloat16")
    hidden_ND, trunk_s = labelled(model, ids_RT)
    head = head_of(model, n_vocabulary=len(load_tokenizer(arguments.teacher)))
    budgets = {
        f"m = {arguments.m}": Budget(fixed={"m": arguments.m}),
        f"{DEFAULT_BYTES:g} bytes a token": Budget(bytes_per_token=DEFAULT_BYTES),
    }
    result = {name: measured(budget, hidden_ND, ids_RT, head=head, trunk_s=trunk_s) for name, budget in budgets.items()}
    print(result)
    measure.write("cache_decode", {"environment": environment, **result})


if __name__ == "__main__":
    main()
