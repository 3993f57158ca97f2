"""DP-SGD (Abadi et al. 2016): Poisson batches, clipped per-sample gradients, noised sums.

Opacus's hooks give the gradient of every record, and for a layer that sees one vector a
record (a classification head) its two factors. Clipping, summing and noise are here, so that
one page shows all that the privacy guarantee rests on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedllm.errors import TrainingError
from fedllm.privacy.noise import gaussian_noise
from fedllm.randomness import RandomStream

if TYPE_CHECKING:
    from opacus.grad_sample import GradSampleHooks

# A float64's largest relative error in one operation.
_ROUNDING = 2.0**-53
# Below it a float64 has fewer digits.
_SMALLEST_NORMAL = 2.0**-1022


def poisson_batch(
    units: NDArray[np.int64], number_of_units: int, sampling_rate: float, sampling: RandomStream
) -> NDArray[np.int64]:
    """Choose each unit independently with probability ``sampling_rate``.

    Parameters
    ----------
    units : ndarray
        (N,), the unit (record or person) that each record belongs to, from 0.
    number_of_units : int
        How many units there are.

    Returns
    -------
    ndarray
        Indices of all records of the chosen units, ascending; empty now and then, and such
        a batch is a step like any other.
    """
    chosen = np.zeros(number_of_units, dtype=bool)
    chosen[sampling.poisson_sample(number_of_units, sampling_rate)] = True
    return np.flatnonzero(chosen[units]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class OuterProducts:
    """Gradients of a weight that sees one vector a record: each the product of two vectors.

    Kept apart, B gradients of shape (out, in) take B * (out + in) values instead of
    B * out * in (Goodfellow 2015, "Efficient per-example gradient computations").

    Attributes
    ----------
    backprops : Tensor
        (B, out), gradient of the loss by the layer's output.
    activations : Tensor
        (B, in), the layer's input.
    """

    backprops: Tensor
    activations: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, out, in)."""
        return (len(self.backprops), self.backprops.shape[1], self.activations.shape[1])


Gradients = Tensor | OuterProducts


@contextmanager
def per_sample_hooks(module: nn.Module, row_layers: Sequence[nn.Linear] = ()) -> Iterator[None]:
    """Collect a gradient for each sample at every backward pass inside the block.

    Parameters
    ----------
    module : nn.Module
        The trained tensors' layers get Opacus's hooks.
    row_layers : sequence of nn.Linear
        Those of them whose input is (B, in): `OuterProducts` are kept for them instead.
    """
    handles = [layer.register_forward_hook(_keep_factors) for layer in row_layers]
    # Opacus puts no hook on what seems frozen when it looks.
    trained = [(p, p.requires_grad) for layer in row_layers for p in layer.parameters()]
    for parameter, _ in trained:
        parameter.requires_grad_(False)
    # Where row layers are all that is trained, a walk through the whole model would cost more
    # than their gradients.
    others = any(parameter.requires_grad for parameter in module.parameters())
    hooks = _hooks(module) if others else None
    for parameter, was in trained:
        parameter.requires_grad_(was)
    try:
        with warnings.catch_warnings():
            # The lowest trained layer reads states that need no gradient; that is intended.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        if hooks is not None:
            hooks.cleanup()
        for handle in handles:
            handle.remove()


def _hooks(module: nn.Module) -> GradSampleHooks:
    # It takes half a second, which sites that train a head alone need not spend.
    from opacus.grad_sample import GradSampleHooks

    return GradSampleHooks(module, batch_first=True, loss_reduction="sum", strict=True)


def _keep_factors(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if not output.requires_grad:
        return

    def keep(backprops: Tensor) -> None:
        again = getattr(layer.weight, "grad_sample", None) is not None
        kept = False if again else OuterProducts(backprops.detach(), inputs[0].detach())
        layer.weight.grad_sample = kept  # type: ignore[union-attr]
        if layer.bias is not None:
            layer.bias.grad_sample = backprops.detach()  # type: ignore[union-attr]

    output.register_hook(keep)


def per_sample_gradients(
    parameters: Sequence[nn.Parameter], losses: Callable[[], Tensor]
) -> list[Gradients]:
    """Return each record's gradient, (B, *shape) for every parameter.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        What is trained; all must be inside `per_sample_hooks`.
    losses : callable
        Runs the model on B records and returns their losses (B,).

    Raises
    ------
    TrainingError
        If a parameter got no gradient for each record.
    """
    _forget_gradients(parameters)
    values = losses()
    values.sum().backward()
    gradients: list[Gradients] = []
    for parameter in parameters:
        gradient = parameter.grad_sample  # type: ignore[attr-defined]
        usable = isinstance(gradient, Tensor | OuterProducts)
        if not usable or tuple(gradient.shape) != (len(values), *parameter.shape):
            raise TrainingError(
                "a trained tensor got no gradient for each record: the model uses it in a way "
                "that per-sample gradients do not cover",
                "leave that layer out of lora.target_modules",
            )
        gradients.append(gradient)
    _forget_gradients(parameters)
    return gradients


def unit_gradients(
    parameters: Sequence[nn.Parameter], losses: Callable[[], Tensor]
) -> list[Gradients]:
    """Return the gradient of one unit's records together, (1, *shape) for every parameter.

    For tensors of any layer, in place of hooks, which know a record's part of a gradient for some
    kinds of layers alone. Of a unit the sum over its records is all that is asked for, and every
    unit is computed by itself, so plain backpropagation gives it.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        What is trained.
    losses : callable
        Runs the model on records of one unit and returns their losses (B,).
    """
    gradients = torch.autograd.grad(losses().sum(), parameters, materialize_grads=True)
    return [gradient.unsqueeze(0) for gradient in gradients]


def forget_step(module: nn.Module) -> None:
    """Forget what hooks kept of a step that broke off, or the next one would take it for its own.

    Opacus keeps each layer's inputs until the backward pass has used them.
    """
    for layer in module.modules():
        for name in ("activations", "max_batch_len"):
            if hasattr(layer, name):
                delattr(layer, name)
    for parameter in module.parameters():
        if hasattr(parameter, "_forward_counter"):
            parameter._forward_counter = 0
        if hasattr(parameter, "_current_grad_sample"):
            del parameter._current_grad_sample


def _forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
        parameter.grad_sample = None  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class ClippedGradient:
    """What one unit adds to a step's sum.

    Attributes
    ----------
    values : ndarray
        (P,) float64, parameters in the order they were given.
    norm : float
        Its L2 norm before clipping; infinite where it has none.
    """

    values: NDArray[np.float64]
    norm: float


def added_up(gradients: Sequence[Gradients]) -> NDArray[np.float64]:
    """Add up some records' gradients, (B, *shape) each, to one float64 vector (P,)."""
    return added_up_tensor(gradients).cpu().numpy()


def added_up_tensor(gradients: Sequence[Gradients]) -> Tensor:
    """Add up some records' gradients as `added_up` does, on their own device."""
    return torch.cat([_sum(gradient) for gradient in gradients])


def _sum(gradient: Gradients) -> Tensor:
    if isinstance(gradient, Tensor):
        return gradient.double().sum(0).flatten()
    return (gradient.backprops.double().T @ gradient.activations.double()).flatten()


def clipped(gradient: NDArray[np.float64], clipping_norm: float) -> ClippedGradient:
    """Clip one unit's gradient over all parameters together.

    What is clipped is the very vector that is added, in float64, by a little more than its norm
    asks for: the sum of P squares is wrong by a part of P roundings at most. So its norm is at
    most ``clipping_norm``, however it is computed. A unit whose gradient is not finite adds
    nothing: refusing the batch would tell, without any noise, that such a unit is there, and
    whoever chooses the adapter can aim at one.

    Parameters
    ----------
    gradient : ndarray
        (P,) float64.
    clipping_norm : float
        Largest L2 norm that the unit adds.
    """
    # Scaled first: the squares of large values would overflow.
    largest = float(np.abs(gradient).max(initial=0.0))
    if not np.isfinite(largest):
        return ClippedGradient(np.zeros(len(gradient)), np.inf)
    scaled = torch.from_numpy(gradient / largest) if largest else torch.zeros(1)
    norm = largest * float(torch.linalg.vector_norm(scaled))
    return ClippedGradient(gradient * clipping_weight(norm, len(gradient), clipping_norm), norm)


def clipping_weight(norm: float, length: int, clipping_norm: float) -> float:
    """Return by what a float64 vector is multiplied so that its L2 norm is not above a bound.

    Zero where the vector is so long that float64 has no weight for it in full precision: a
    rounded one could leave it longer than the bound.

    Parameters
    ----------
    norm : float
        The vector's, as it was computed in float64: wrong by a part of ``length`` roundings.
    """
    upper = norm * (1.0 + (length + 8) * _ROUNDING)
    weight = clipping_norm / max(upper, clipping_norm)
    return weight if weight >= _SMALLEST_NORMAL else 0.0


def noised_mean(
    total: NDArray[np.float64],
    noise_multiplier: float,
    clipping_norm: float,
    expected_batch_size: float,
    noise: RandomStream,
) -> NDArray[np.float64]:
    """Add one step's noise to a sum of clipped gradients, and divide by a public constant.

    Parameters
    ----------
    total : ndarray
        (P,) float64, all zero after an empty batch.
    noise_multiplier : float
        Standard deviation of the noise in units of ``clipping_norm``.
    expected_batch_size : float
        Divisor; fixed beforehand, never the size of the batch, which is private.
    noise : RandomStream
        ``RandomStream.secure()`` outside tests.

    Returns
    -------
    ndarray
        (P,) float64, safe to release.
    """
    deviation = noise_multiplier * clipping_norm
    return (total + gaussian_noise(noise, len(total), deviation)) / expected_batch_size
