"""Resampling, activation and modulation in few passes over memory, with derivatives alike; differentiable any number of times."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from gan_uad.networks.second_order import weights_wanted

aten = torch.ops.aten


def resample(x: Tensor, taps: tuple[float, ...], up: int, down: int, pad: tuple[int, int], gain: float = 1.0) -> Tensor:
    """Zero-insert `up`-fold, pad, filter by the outer product of `taps` (symmetric; scaled to sum `gain`), take every `down`-th pixel.

    `[N, C, H, W]` -> `[N, C, H', W']` with H' = (H·up + sum(pad) − len(taps)) // down + 1. (Karras et al. 2019, appendix C; the
    filters [1, 2, 1] and [1, 3, 3, 1] of StyleGAN and StyleGAN2.)
    """
    y: Tensor = _Resample.apply(x, taps, up, down, pad, gain)
    return y


class _Resample(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: tuple[float, ...], up: int, down: int, pad: tuple[int, int], gain: float
    ) -> Tensor:
        y = _resampled(x, taps, up, down, pad, gain)
        # The adjoint is a resampling too, with `up` and `down` exchanged; its size must be that of x.
        before = len(taps) - 1 - pad[0]
        after = x.shape[-1] * up - y.shape[-1] * down + pad[0] - up + 1
        ctx.adjoint = (taps, down, up, (before, after), gain)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Resample.apply(grad, *ctx.adjoint), None, None, None, None, None


def _resampled(x: Tensor, taps: tuple[float, ...], up: int, down: int, pad: tuple[int, int], gain: float) -> Tensor:
    c, size, total = x.shape[1], len(taps), sum(taps) ** 2
    kernel = torch.tensor([[a * b * gain / total for a in taps] for b in taps], dtype=x.dtype, device=x.device)
    weight = kernel.expand(c, 1, size, size)
    if up == 1:
        if pad[0] != pad[1] or min(pad) < 0:
            x, pad = F.pad(x, (*pad, *pad)), (0, 0)
        return F.conv2d(x, weight, stride=down, padding=pad[0], groups=c)
    crop = (size - 1 - pad[0], size - up - pad[1])  # of the full transposed convolution
    uneven = min(crop) < 0 or crop[0] != crop[1]
    y = F.conv_transpose2d(x, weight, stride=up, padding=0 if uneven else crop[0], groups=c)
    if uneven:
        y = F.pad(y, (-crop[0], -crop[1], -crop[0], -crop[1]))
    return y[..., ::down, ::down] if down > 1 else y


CLAMP = 256.0  # of activations in low precision: StyleGAN2-ADA's
_CACHED = 1 << 17  # elements of an image from which on a batch is worked through image by image, to stay in cache


def scale_act(
    y: Tensor, scale: Tensor | float, bias: Tensor | None, noise: Tensor | None, act_gain: float | None
) -> Tensor:
    """`y · scale + noise + bias`, then, where `act_gain` is a number, a leaky ReLU (0.2) times it: in few passes over memory.

    y `[N, C, H, W]`, scale a number or `[N, C]`, bias `[C]`, noise `[N or 1, 1, H, W]`; the result has y's dtype. In float16 and
    bfloat16 it is clamped to ±256, as in StyleGAN2-ADA.
    """
    factors, number = (scale, 1.0) if isinstance(scale, Tensor) else (None, scale)
    z: Tensor = _ScaleAct.apply(y, factors, bias, noise, number, act_gain)
    return z


class _ScaleAct(Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        factors: Tensor | None,
        bias: Tensor | None,
        noise: Tensor | None,
        number: float,
        act_gain: float | None,
    ) -> Tensor:
        gain = 1.0 if act_gain is None else act_gain  # a leaky ReLU lets positive factors through
        flat = y.new_zeros(()) if bias is None else (bias * gain).to(y.dtype).view(1, -1, 1, 1)
        scaled_noise = None if noise is None else (noise * gain).to(y.dtype).expand(len(y), -1, -1, -1)
        out = torch.empty_like(y)
        for part in _parts(y):
            z = out[part]
            if factors is None:
                torch.add(flat, y[part], alpha=number * gain, out=z)
            else:
                torch.addcmul(flat, y[part], (factors[part] * gain).to(y.dtype)[:, :, None, None], out=z)
            if scaled_noise is not None:
                z.add_(scaled_noise[part])
            if act_gain is not None:
                F.leaky_relu_(z, 0.2)
            if y.dtype != torch.float32 and y.dtype != torch.float64:
                z.clamp_(-CLAMP, CLAMP)
        ctx.save_for_backward(y if factors is not None else None, factors, out)
        ctx.gain, ctx.number, ctx.act = gain, number, act_gain is not None
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.noise = None if noise is None else (len(noise), noise.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, factors, out = ctx.saved_tensors
        _, to_factors, to_bias, to_noise = ctx.needs_input_grad[:4]
        wants = (to_factors, to_bias and weights_wanted(), to_noise)
        compute = _act_grads if torch.is_grad_enabled() else _act_grads_in_place
        over_y, over_factors, over_bias, over_noise = compute(
            grad, y, factors, out.detach(), ctx.number * ctx.gain, ctx.gain, ctx.act, wants
        )
        if over_bias is not None:
            over_bias = over_bias.to(ctx.bias_dtype)
        if over_noise is not None:
            over_noise = over_noise.sum(0, keepdim=True) if ctx.noise[0] == 1 else over_noise
            over_noise = over_noise.to(ctx.noise[1])
        return over_y, over_factors, over_bias, over_noise, None, None


def modulate(x: Tensor, style: Tensor) -> Tensor:
    """Scale the channels of each image: x `[N, C, H, W]`, style `[N, C]` -> the shape and dtype of x."""
    y: Tensor = _Modulate.apply(x, style)
    return y


class _Modulate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, style: Tensor) -> Tensor:
        ctx.save_for_backward(x, style)
        return x * style.to(x.dtype)[:, :, None, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, style = ctx.saved_tensors
        if torch.is_grad_enabled():
            over_x = grad * style.to(grad.dtype)[:, :, None, None]
            return over_x, (grad * x).sum((2, 3), dtype=style.dtype) if ctx.needs_input_grad[1] else None
        over_x, over_style = torch.empty_like(grad), torch.empty_like(style)
        for part in _parts(grad):
            over_style[part] = torch.mul(grad[part], x[part], out=over_x[part]).sum((2, 3), dtype=style.dtype)
            torch.mul(grad[part], style[part].to(grad.dtype)[:, :, None, None], out=over_x[part])
        return over_x, over_style


def _act_grads(
    grad: Tensor, y: Any, factors: Any, out: Tensor, number: float, gain: float, act: bool, wants: tuple[bool, ...]
) -> Any:
    """The gradients in operations that can be differentiated again; `out` only tells where the activation was on which side."""
    slope = torch.where(out > 0, 1.0, 0.2).to(grad.dtype) if act else grad.new_ones(())
    if out.dtype != torch.float32 and out.dtype != torch.float64:
        slope = slope * (out.abs() < CLAMP)
    grad = grad * slope
    over_y = grad * number if factors is None else grad * (factors * gain).to(grad.dtype)[:, :, None, None]
    return (
        over_y,
        (grad * y).sum((2, 3), dtype=factors.dtype) * gain if wants[0] else None,
        grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)) * gain if wants[1] else None,
        grad.sum(1, keepdim=True) * gain if wants[2] else None,
    )


def _act_grads_in_place(
    grad: Tensor, y: Any, factors: Any, out: Tensor, number: float, gain: float, act: bool, wants: tuple[bool, ...]
) -> Any:
    """The same values, part by part and without keeping anything."""
    n, c = out.shape[:2]
    over_y = torch.empty_like(out)
    wide = torch.promote_types(grad.dtype, torch.float32)
    over_factors = torch.empty(n, c, device=out.device, dtype=wide) if wants[0] else None
    over_bias = torch.zeros(c, device=out.device, dtype=wide) if wants[1] else None
    over_noise = torch.empty_like(out[:, :1]) if wants[2] else None
    for part in _parts(out):
        g = aten.leaky_relu_backward(grad[part], out[part], 0.2, True) if act else grad[part]
        if out.dtype != torch.float32 and out.dtype != torch.float64:
            g = g * (out[part].abs() < CLAMP)
        if over_bias is not None:
            over_bias += g.sum((0, 2, 3), dtype=wide)
        if over_noise is not None:
            torch.sum(g, 1, keepdim=True, out=over_noise[part])
        if over_factors is not None:
            over_factors[part] = torch.mul(g, y[part], out=over_y[part]).sum((2, 3), dtype=wide)
        if factors is None:
            torch.mul(g, number, out=over_y[part])
        else:
            torch.mul(g, (factors[part] * gain).to(g.dtype)[:, :, None, None], out=over_y[part])
    return (
        over_y,
        None if over_factors is None else (over_factors * gain).to(factors.dtype),
        None if over_bias is None else over_bias * gain,
        None if over_noise is None else over_noise * gain,
    )


def _parts(x: Tensor) -> list[slice]:
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() < _CACHED * len(x):
        return [slice(None)]
    return [slice(i, i + 1) for i in range(len(x))]
