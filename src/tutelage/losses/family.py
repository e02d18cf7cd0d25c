"""The seam: every model that trains, its head and its loss, in one module.

`family(batch, targets, scales) -> LossSums`.  Trunks and the loop over chunks run inside its forward, so it is the only
thing that a data-parallel wrapper has to wrap, and nothing outside touches a head's weight.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from tutelage.losses.chunked import CHUNK_POSITIONS, ChunkFunction, Workspace, chunked_loss
from tutelage.losses.terms import Scale, Term
from tutelage.models.head import head_of, trained_hidden
from tutelage.types import Batch, CausalLM, LossSums, Targets


class Family(nn.Module):
    """One student and its terms (more students, and a teacher that trains, join here)."""

    def __init__(
        self,
        student: CausalLM,
        terms: Sequence[Term],
        *,
        n_vocabulary: int,
        name: str = "student",
        chunk_positions: int = CHUNK_POSITIONS,
        chunk: ChunkFunction | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.name = name
        self.terms = tuple(terms)
        self._n_vocabulary = n_vocabulary
        self._chunk_positions = chunk_positions
        self._chunk = chunk
        self._workspace = Workspace()

    def forward(self, batch: Batch, targets: Targets | None, scales: Mapping[str, Scale]) -> LossSums:
        """Scaled total (with a graph) and each term's plain sum and count over the batch's trained positions."""
        view = batch.view
        total, sums = chunked_loss(
            trained_hidden(self.student, view),
            student_head=head_of(self.student, n_vocabulary=self._n_vocabulary),
            targets=targets,
            next_ids_N=view.next_ids_N,
            terms=self.terms,
            scales=scales,
            chunk_positions=self._chunk_positions,
            chunk=self._chunk,
            workspace=self._workspace,
        )
        return LossSums(
            total=total,
            sums={f"{self.name}/{name}": value for name, value in sums.items()},
            counts={f"{self.name}/{name}": batch.n_trained for name in sums},
        )
