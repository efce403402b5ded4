"""What a call may ask for beyond ``torch.nn``: ``lengths``, ``reset_mask``, ``all_states``, ``checkpoint_chunks``,
``save``; and what it drops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from .._kernels.ops import is_exporting, is_transformed, is_watched
from ..reference import Schedule


class Asked(TypedDict, total=False):
    """The arguments, as a caller gives them."""

    lengths: Tensor | Sequence[int] | None
    reset_mask: Tensor | None
    all_states: bool
    checkpoint_chunks: int | str | None
    save: str | None


class Extras(NamedTuple):
    """The arguments, checked; ``chunks`` is the number of chunks of time that backward recomputes."""

    lengths: Tensor | None
    resets: Tensor | None
    all_states: bool
    chunks: int | None
    save: str | None


class Drops(NamedTuple):
    """What a call drops, drawn for all its layers: ``mask`` (layers * D, B, R), ``seeds`` (layers * D, B), ``rates``;
    each as in :class:`fastrnn.reference.Schedule`."""

    mask: Tensor | None = None
    seeds: Tensor | None = None
    rates: tuple[float, ...] = ()

    def by_layer(self, layers: int, dtype: torch.dtype) -> list[Drops]:
        """The same for each layer: with its mask (D, B, R) in ``dtype``, and its seeds (D, B)."""
        masks = [None] * layers if self.mask is None else self.mask.to(dtype).chunk(layers)
        seeds = [None] * layers if self.seeds is None else self.seeds.chunk(layers)
        return [Drops(*own, self.rates) for own in zip(masks, seeds)]

    def on(self, schedule: Schedule) -> Schedule:
        """``schedule`` with what a layer drops."""
        return schedule._replace(mask=self.mask, seeds=self.seeds, rates=self.rates)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.mask, self.seeds


def check_extras(
    name: str,
    input: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    all_states: bool = False,
    checkpoint_chunks: int | str | None = None,
    save: str | None = None,
) -> Extras | None:
    """The arguments of a call on the time-major ``input``, or None where nothing is asked for.

    Raises:
        TypeError, ValueError: naming the function or class ``name``, what was expected and what was given.
    """
    if lengths is None and reset_mask is None and all_states is False and checkpoint_chunks is None and save is None:
        return None
    all_states, checkpoint_chunks = _unboxed(all_states), _unboxed(checkpoint_chunks)
    if not isinstance(all_states, bool):
        raise TypeError(f"{name}: all_states must be a bool, got {all_states!r}")
    if save not in (None, "full", "states"):
        raise ValueError(f"{name}: save must be 'full', 'states' or None, got {save!r}")
    packed = batch_sizes is not None
    T = batch_sizes.size(0) if packed else input.size(0)
    if lengths is not None or reset_mask is not None:
        lengths = as_lengths(name, lengths, input)
        B = None if packed else input.size(1)
        _check_mask(name, "lengths", lengths, torch.int64, ("(B,)", (B,)), input, packed)
        _check_mask(name, "reset_mask", reset_mask, torch.bool, ("(B, T)", (B, T)), input, packed)
    if lengths is not None:
        _check_values(name, lengths, T)
    return Extras(lengths, reset_mask, all_states, _chunks(name, checkpoint_chunks, T), save)


def _unboxed(value):
    """A number of numpy's as Python's."""
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


def as_lengths(name: str, given, input: Tensor) -> Tensor | None:
    """``lengths`` as ``pack_padded_sequence`` takes them: integers in a tensor, a list or an array."""
    if given is None or (isinstance(given, Tensor) and given.dtype == torch.int64):
        return given
    try:
        lengths = torch.as_tensor(given, device=None if isinstance(given, Tensor) else input.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: lengths must be integers of shape (B,), got {given!r}") from error
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"{name}: lengths must be integers of shape (B,), got {lengths.dtype}")
    return lengths.to(torch.int64)


def _check_mask(name, argument, given, dtype, shape, input, packed) -> None:
    if given is None:
        return
    if packed:
        raise ValueError(f"{name}: {argument} needs a padded input, got a packed one, which has its own lengths")
    letters, sizes = shape
    expected = f"{name}: {argument} must be {str(dtype).removeprefix('torch.')} of shape {letters} = {sizes}"
    if not isinstance(given, Tensor):
        raise TypeError(f"{expected}, got {type(given).__name__}")
    if given.dtype != dtype or given.shape != sizes:
        raise ValueError(f"{expected}, got {str(given.dtype).removeprefix('torch.')} of shape {tuple(given.shape)}")
    if given.device != input.device:
        raise ValueError(f"{expected} on the input's device {input.device}, got it on {given.device}")


def _check_values(name: str, lengths: Tensor, T: int) -> None:
    if is_watched() or is_transformed() or lengths.is_meta:
        return  # values are not to be looked at here; the CPU kernels check them once more
    outside = (lengths < 0) | (lengths > T)
    if not lengths.is_cpu:
        torch._assert_async(~outside.any(), f"{name}: lengths must be within 0 .. T = {T}")  # nothing waits for it
        return
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(
            f"{name}: lengths must be int64 of shape (B,) = {tuple(lengths.shape)} with 0 <= length <= T = {T}, "
            f"got {int(lengths[index])} at index {index}"
        )


def _chunks(name: str, given: int | str | None, T: int) -> int | None:
    if given is not None and given != "auto" and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        raise ValueError(f"{name}: checkpoint_chunks must be a positive integer, 'auto' or None, got {given!r}")
    if given is None or is_exporting():
        return None
    if given == "auto":
        return max(1, round(math.sqrt(T)))
    return given if given <= T else max(T, 1)  # a graph of any length takes no minimum that it cannot resolve
