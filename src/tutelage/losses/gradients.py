"""The two products of the backward pass, and the large tensors that are kept between chunks and steps.

Shape legend: N trained positions, V vocabulary, D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses.support import wide
from tutelage.types import Head


class Workspace:
    """Tensors kept between chunks and steps: the memory of a fresh one costs as much as the product written to it."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def tensor(self, name: str, like: Tensor, *, rows: int, columns: int) -> Tensor:
        """An uninitialised [rows, columns], dtype and device of `like`: the one of before where it is large enough."""
        kept = self._tensors.get(name)
        wanted = (like.dtype, like.device, columns, torch.is_inference_mode_enabled())
        if kept is None or (kept.dtype, kept.device, kept.shape[1], kept.is_inference()) != wanted or len(kept) < rows:
            self._tensors.pop(name, None)
            kept = self._tensors[name] = like.new_empty((rows, columns)).detach()
        return kept[:rows]


@dataclass(slots=True)
class Gradients:
    """Gradients of hidden states, weight and bias, summed over groups; in float32 or wider as soon as there are two."""

    hidden_ND: Tensor
    weight_VD: Tensor | None
    bias_V: Tensor | None
    weight_shape: torch.Size
    of_head: bool = True  # whether the head learns

    @classmethod
    def zero(cls, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> "Gradients":
        """Before the first group; a head that does not learn costs no product."""
        if not weight_VD.requires_grad:
            return cls(torch.zeros_like(hidden_ND), None, None, weight_VD.shape, of_head=False)
        bias_gradient_V = torch.zeros_like(bias_V, dtype=wide(bias_V.dtype)) if bias_V is not None else None
        return cls(torch.zeros_like(hidden_ND), None, bias_gradient_V, weight_VD.shape)

    def add(self, gradient_NV: Tensor, group: slice, *, head: Head, hidden_ND: Tensor, workspace: Workspace) -> None:
        """The two products of the backward pass, over a group: the larger, the cheaper the sum into the weight's."""
        n_rows = head.n_vocabulary
        weight_VD = head.weight_VD[:n_rows]
        self.hidden_ND[group] = gradient_NV @ weight_VD
        if not self.of_head:
            return
        first = self.weight_VD is None
        if self.weight_VD is None:
            one_group = group.start == 0 and group.stop == hidden_ND.shape[0]
            dtype = weight_VD.dtype if one_group else wide(weight_VD.dtype)
            self.weight_VD = weight_VD.new_empty(self.weight_shape, dtype=dtype)
            self.weight_VD[n_rows:] = 0
        group_hidden_ND = hidden_ND[group].to(weight_VD.dtype)
        if self.weight_VD.dtype == weight_VD.dtype:
            out_VD = self.weight_VD[:n_rows]
            torch.addmm(out_VD, gradient_NV.t(), group_hidden_ND, beta=0 if first else 1, out=out_VD)
        else:
            columns = weight_VD.shape[1]
            part_VD = workspace.tensor(f"weight {n_rows} {columns}", weight_VD, rows=n_rows, columns=columns)
            torch.mm(gradient_NV.t(), group_hidden_ND, out=part_VD)
            self.weight_VD[:n_rows].copy_(part_VD) if first else self.weight_VD[:n_rows].add_(part_VD)
        if self.bias_V is not None:
            self.bias_V[:n_rows] += gradient_NV.sum(0, dtype=self.bias_V.dtype)

    def finish(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """In the dtype of the weight, as autograd wants them."""
        if not self.of_head:
            return self.hidden_ND, None, None
        if self.weight_VD is None:
            self.weight_VD = self.hidden_ND.new_zeros(self.weight_shape, dtype=dtype)
        return self.hidden_ND, self.weight_VD.to(dtype), self.bias_V.to(dtype) if self.bias_V is not None else None
