"""The seam: every model that trains, its head and its loss, in one module.

`family(batch, targets, scales) -> LossSums`.  Trunks and the loop over chunks run inside its forward, so it is the only
thing that a data-parallel wrapper has to wrap, and nothing outside touches a head's weight.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tutelage.losses.chunked import CHUNK_POSITIONS, joint_loss
from tutelage.losses.feature_sums import feature_losses, own_taps
from tutelage.losses.gradients import Workspace
from tutelage.losses.job import ChunkFunction, Part
from tutelage.losses.terms import Scale, Term
from tutelage.models.head import head_of, trained_hidden
from tutelage.models.taps import tapped
from tutelage.roles import TEACHER, figure_name
from tutelage.types import Batch, CausalLM, DenseTargets, LossSums, Tap, Targets


class Family(nn.Module):
    """The models of a run that train, by name, and what each learns from whom."""

    def __init__(
        self,
        models: Mapping[str, CausalLM],
        terms: Mapping[str, Sequence[Term]],
        *,
        n_vocabulary: int,
        chunk_positions: int = CHUNK_POSITIONS,
        chunk: ChunkFunction | None = None,
        learned: Mapping[str, Mapping[str, nn.Parameter]] | None = None,
    ) -> None:
        """`learned`: of each model, what its feature terms learn beside it, by `feature_sums.key`."""
        super().__init__()
        # A ModuleDict refuses names that it has itself, such as `keys`.
        self.models = nn.ModuleDict({_key(name): model for name, model in models.items()})
        self._learned = {name: nn.ParameterDict(of) for name, of in (learned or {}).items()}
        self.learned = nn.ModuleDict({_key(name): of for name, of in self._learned.items()})
        self.terms = {name: tuple(of) for name, of in terms.items()}
        self._n_vocabulary = n_vocabulary
        self._chunk_positions = chunk_positions
        self._chunk = chunk
        self._workspace = Workspace()

    def forward(
        self,
        batch: Batch,
        targets: Mapping[str, Targets],
        scales: Mapping[str, Mapping[str, Scale]],
        *,
        before: Callable[[str], None] | None = None,
    ) -> LossSums:
        """Scaled total (with a graph) and each term's plain sum and count over the batch's trained positions.

        The models in `scales` take part; one that others learn from and that is not in it is asked as it is, without a
        gradient and in eval mode.  `before(name)` is called ahead of each trunk: the place to seed its dropout.
        """
        view = batch.view
        parts: dict[str, Part] = {}
        inside: dict[str, Mapping[Tap, Tensor]] = {}
        for name in scales:
            if before is not None:
                before(name)
            with tapped(self.model(name), own_taps(self.terms[name])) as inside[name]:
                hidden_ND = trained_hidden(self.model(name), view)
            parts[name] = Part(
                hidden_ND=hidden_ND,
                head=head_of(self.model(name), n_vocabulary=self._n_vocabulary),
                terms=tuple(term for term in self.terms[name] if term.feature is None),
                scales=scales[name],
            )
        asked = {term.source for part in parts.values() for term in part.terms if term.needs_teacher}
        silent = {name: self._ask(name, batch) for name in self.terms if name in asked and name not in parts}
        total, sums = joint_loss(
            parts,
            targets={**targets, **silent},
            next_ids_N=view.next_ids_N,
            chunk_positions=self._chunk_positions,
            chunk=self._chunk,
            workspace=self._workspace,
        )
        for name in parts:
            more, own_sums = self._feature_losses(name, inside[name], batch, targets=targets, scales=scales[name])
            total = total if more is None else total + more
            sums[name] |= own_sums
        return LossSums(
            total=total,
            sums={figure_name(model, name): value for model, of in sums.items() for name, value in of.items()},
            counts={figure_name(model, name): batch.n_trained for model, of in sums.items() for name in of},
        )

    def _feature_losses(
        self,
        name: str,
        inside: Mapping[Tap, Tensor],
        batch: Batch,
        *,
        targets: Mapping[str, Targets],
        scales: Mapping[str, Scale],
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """(scaled total or None, sums) of the terms of a model that compare layers with the teacher's."""
        taught = targets.get(TEACHER)
        return feature_losses(
            self.terms[name],
            own=inside,
            teachers=taught.features if isinstance(taught, DenseTargets) else {},
            view=batch.view,
            learned=dict(self._learned[name].items()) if name in self._learned else {},
            scales=scales,
        )

    def model(self, name: str) -> CausalLM:
        """One of the models."""
        return self.models[_key(name)]

    def set_training(self, names: Iterable[str]) -> None:
        """Train mode for these models, eval mode for the others."""
        wanted = {*names}
        for name in self.terms:
            self.model(name).train(name in wanted)

    @torch.no_grad()
    def _ask(self, name: str, batch: Batch) -> DenseTargets:
        model = self.model(name)
        return DenseTargets(
            hidden_ND=trained_hidden(model, batch.view), head=head_of(model, n_vocabulary=self._n_vocabulary)
        )


def _key(name: str) -> str:
    return f"model_{name}"
