"""The positions whose gradients wait for one product into the weight, and how the models of a joint loss go over them.

One model after the other: its product, its chunks, then the two products of its backward pass (`gradients.py`), while
what they read is still in the cache.  A product that others learn from is made before them and kept until its own
model's turn; all other models share one buffer.

Shape legend: n positions of a chunk or of the group, V vocabulary, D hidden size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.losses.job import Job, Pass


@dataclass(slots=True, kw_only=True)
class Group:
    """Positions of a job; `hidden` are each model's hidden states [N, D] in its head's dtype."""

    job: Job
    hidden: Mapping[str, Tensor]
    place: slice
    whole: dict[str, Tensor] = field(default_factory=dict)  # products [n, V] of models that others learn from
    outside: dict[tuple[str, int], Tensor | None] = field(default_factory=dict)  # the same of targets, by chunk

    def learn(self, name: str) -> Tensor:
        """The sums of a model into the job; d(total)/d(its product) of the group, [n, V], until the next model's."""
        teaches = name in self.job.taught_by
        product_NV = self._whole(name) if teaches else self._buffer(name, "product")
        if name in self.job.copied:
            self.whole[name] = product_NV.clone()
        for chunk in self._chunks():
            rows = self._rows(chunk)
            if not teaches:
                self._multiply(name, chunk, out_NV=product_NV[rows])
            self._learn_chunk(name, chunk, product_NV=product_NV[rows])
        return product_NV

    def _learn_chunk(self, name: str, chunk: slice, *, product_NV: Tensor) -> None:
        """The sums of one chunk into the job; the product [n, V] becomes the gradient with respect to it."""
        passes, sums = self.job.passes[name], self.job.sums[name]
        teaching = {each.source: self._teaching(each.source, chunk) for each in passes}
        gradients = [each for each in passes if each.gradient]
        summed_NV = torch.zeros_like(product_NV) if len(gradients) > 1 else None
        for each in passes:
            is_last = not each.gradient or each is gradients[-1]
            own_NV = product_NV if is_last else product_NV.clone()
            found, gradient_NV = self._pass(name, each, chunk, product_NV=own_NV, teaching_NV=teaching[each.source])
            for term, value in found.items():
                sums[term] = sums[term] + value if term in sums else value
            if gradient_NV is None:
                continue
            if summed_NV is not None and not is_last:
                summed_NV += gradient_NV
                continue
            if gradient_NV is not product_NV:
                product_NV.copy_(gradient_NV)
            if summed_NV is not None:
                product_NV += summed_NV
        if self.job.needs_gradient and not gradients:
            product_NV.zero_()

    def _pass(
        self, name: str, each: Pass, chunk: slice, *, product_NV: Tensor, teaching_NV: Tensor | None
    ) -> tuple[Mapping[str, Tensor], Tensor | None]:
        """(sums, gradient) of some terms of a model."""
        part = self.job.parts[name]
        result = each.chunk(
            each.terms,
            scales=part.scales,
            student_product_NV=product_NV,
            teacher_product_NV=teaching_NV,
            student_head=part.head,
            teacher_head=self.job.head_of(each.source),
            next_ids_N=self.job.next_ids_N[chunk],
            gradient=each.gradient,
            stored=self.job.stored(each.source, chunk),
        )
        assert result.gradient_NV is not None or not each.gradient
        return result.sums, result.gradient_NV if each.gradient else None

    # --- products ----------------------------------------------------------------------------------------------------

    def _teaching(self, source: str | None, chunk: slice) -> Tensor | None:
        """What terms learn from at the positions of a chunk, [n, V]; None for a few stored entries, and for nobody."""
        if source is None:
            return None
        if source in self.job.parts:
            return self._whole(source)[self._rows(chunk)]
        if self.job.taught_by[source] == 1:
            return self.job.full(source, chunk, buffer=0)
        key = source, chunk.start
        if key not in self.outside:
            buffer = self._rows(chunk).start // self.job.chunk_positions
            self.outside[key] = self.job.full(source, chunk, buffer=buffer)
        return self.outside[key]

    def _whole(self, name: str) -> Tensor:
        """The product of the group of a model that others learn from, made when the first of them asks."""
        if name not in self.whole:
            product_NV = self.whole[name] = self._buffer(name, f"product {name}")
            for chunk in self._chunks():
                self._multiply(name, chunk, out_NV=product_NV[self._rows(chunk)])
        return self.whole[name]

    def _multiply(self, name: str, chunk: slice, *, out_NV: Tensor) -> None:
        self.job.parts[name].head.product(self.hidden[name][chunk], out_NV=out_NV)

    def _buffer(self, name: str, called: str) -> Tensor:
        """Of models with heads alike, the same under the same name."""
        head = self.job.parts[name].head
        like, columns = head.weight_VD, head.n_vocabulary
        called = f"{called} {columns} {like.dtype}"
        return self.job.workspace.tensor(called, like, rows=self.place.stop - self.place.start, columns=columns)

    def _chunks(self) -> Iterator[slice]:
        """Each product is made in these pieces, so that its bits do not depend on who needs it."""
        step = self.job.chunk_positions
        for start in range(self.place.start, self.place.stop, step):
            yield slice(start, min(start + step, self.place.stop))

    def _rows(self, chunk: slice) -> slice:
        return slice(chunk.start - self.place.start, chunk.stop - self.place.start)
