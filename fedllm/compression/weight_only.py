"""Linear layers whose weights are integers, and whose states stay as they are.

For decoders that write token by token: there the time goes into reading weights from memory, and
what states are rounded to saves nothing. States become bfloat16 for the products of a few rows,
whose operations torch has for processors; results are of the type that states had.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from fedllm.compression.int8 import Int8Linear, IntegerLinear
from fedllm.models.quantized import pack, quantize, unpack

# Of one scale; what a frozen base of 4 bits has.
GROUP = 32
# Up to it, reading integers is quicker than making plain numbers of them.
_FEW_ROWS = 16
# torch 2.13 reads beyond a row whose inputs are no whole number of 16, and dies.
_INPUTS = 32
# That torch's operation for 4 bits takes its outputs in.
_OUTPUTS = 16
_ZERO_AT = 8


class Int8WeightsLinear(Int8Linear):
    """A linear layer with weights of 8 bits, one scale for each output; see `Int8Linear`."""

    def forward(self, states: Tensor) -> Tensor:
        """Return (..., outputs) of states (..., inputs)."""
        rows = states.reshape(-1, self.in_features)
        if len(rows) <= _FEW_ROWS and self.in_features % _INPUTS == 0:
            # Scales come after the product: in bfloat16 each would be off by its rounding.
            ones = torch.ones(self.out_features, dtype=torch.bfloat16)
            product = torch._weight_int8pack_mm(
                rows.type(torch.bfloat16), self.weight, ones
            ).float()
        else:
            product = linear(rows.float(), self.weight.float())
        product = product * self.scales.T
        return _result(product, cast("Tensor | None", self.bias), states)


class Int4Linear(IntegerLinear):
    """A linear layer with weights of 4 bits, one scale for each 32 of an output's.

    The integers are those of a run's frozen base (`fedllm.models.quantized.quantize`).
    """

    codes: Tensor

    def _make_empty(self) -> None:
        outputs, groups = self.out_features, -(-self.in_features // GROUP)
        codes = torch.zeros(outputs, groups, GROUP // 2, dtype=torch.int8)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", torch.ones(outputs, groups, 1, dtype=torch.bfloat16))
        self._is_quick = False

    def _round(self, rows: Tensor) -> None:
        codes, scales = quantize(rows, 4, GROUP)
        self.codes, self.scales = pack(codes), scales.type(torch.bfloat16)

    def weights(self) -> Tensor:
        """Return the numbers, float32 (outputs, inputs), that the integers stand for."""
        values = unpack(self.codes).float().mul_(self.scales.float())
        return values.flatten(1)[:, : self.in_features]

    def count_nonzero(self) -> int:
        """Return how many of the integers are not zero, however they are laid out."""
        if not self._is_quick:
            return int(torch.count_nonzero(unpack(self.codes)))
        halves = torch.stack((self.codes & 15, self.codes >> 4))
        return int(torch.count_nonzero(halves != _ZERO_AT))

    def quicken(self) -> None:
        """Lay the integers out as this processor reads them quickest; they stay so.

        Layers whose outputs are no whole number of 16 stay as they are, and slow.
        """
        if self._is_quick or self.out_features % _OUTPUTS:
            return
        codes = unpack(self.codes).flatten(1).int() + _ZERO_AT
        scales = self.scales.flatten(1).T
        self.codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.scales = torch.stack((scales, torch.zeros_like(scales)), dim=-1)
        self._is_quick = True

    def forward(self, states: Tensor) -> Tensor:
        """Return (..., outputs) of states (..., inputs)."""
        rows = states.reshape(-1, self.in_features)
        if self._is_quick:
            rows = pad(rows.type(torch.bfloat16), (0, -self.in_features % GROUP))
            product = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows, self.codes, GROUP, self.scales
            )
        else:
            product = linear(rows.float(), self.weights())
        return _result(product.float(), cast("Tensor | None", self.bias), states)


def _result(product: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    found = product if bias is None else product + bias
    return found.type(states.dtype).reshape(*states.shape[:-1], -1)
