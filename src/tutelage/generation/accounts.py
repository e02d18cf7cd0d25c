"""What the journal and the card tell of each teacher: whom it was, what it computed with, what came of it."""

from typing import cast

from tutelage.data.answers import Asked
from tutelage.generation.ledger import Ledger
from tutelage.generation.product import Product
from tutelage.generation.writers import Writer


def compute_paths(writers: tuple[Writer, ...], ledger: Ledger, *, is_finished: bool) -> dict[str, dict[str, str]]:
    """What the models on this machine compute with: chosen once, so that a call that goes on writes the same."""
    models = cast("dict[str, str]", ledger.run.get("models", {}))  # what another model did says nothing of this one
    known = {w.name: ledger.compute[w.name] for w in writers
             if w.name in ledger.compute and models.get(w.name) == w.sampling.model}  # fmt: skip
    for writer in writers:
        if writer.local is not None and not is_finished:
            from tutelage.generation.local import compute_of

            known[writer.name] = compute_of(writer.local, known.get(writer.name))
    return known


def asked(writer: Writer, ledger: Ledger, product: Product) -> Asked:
    """The teacher's entry in the card."""
    n_asked, n_rows = product.by_teacher.get(writer.name, (0, 0))
    base_url = writer.endpoint.base_url if writer.endpoint is not None else None
    entry = Asked(
        base_url=base_url,
        model=writer.model,
        terms=writer.terms,
        body=dict(writer.sampling.body),
        price=writer.price,
        asked=n_asked,
        rows=n_rows,
    )
    if writer.local is None:
        return entry
    from tutelage.generation.local import versions

    local = writer.local
    known = {"weights": local.weights, "tokenizer": local.tokenizer, "template": local.template}
    return entry.model_copy(update={**known, "compute": ledger.compute.get(writer.name), "libraries": versions()})
