"""Resampling, activation and modulation in few passes over memory, with derivatives alike; differentiable any number of times."""

from __future__ import annotations

from functools import cache
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
    c, size = x.shape[1], len(taps)
    kernels = _made_kernels if torch.compiler.is_compiling() else _kernels
    weight = kernels(taps, gain, c, x.dtype, x.device)
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


def _made_kernels(
    taps: tuple[float, ...], gain: float, channels: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The filter of each channel, `[C, 1, K, K]`."""
    total = sum(taps) ** 2
    with torch.inference_mode(False):
        kernel = torch.tensor([[a * b * gain / total for a in taps] for b in taps], dtype=dtype, device=device)
        return kernel.expand(channels, 1, -1, -1).contiguous()


_kernels = cache(_made_kernels)  # the copy of a kernel to a GPU waits for it


CLAMP = 256.0  # of activations in float16: StyleGAN2-ADA's. bfloat16 has the range of float32
_CACHED = 1 << 17  # elements of an image from which on a batch is worked through image by image, to stay in cache


def scale_act(
    y: Tensor,
    factors: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    gain: float = 1.0,
    activate: bool = True,
) -> Tensor:
    """`gain · (y · factors + noise + bias)`, then with `activate` a leaky ReLU (0.2): in few passes over memory.

    y `[N, C, H, W]`, factors `[N, C]`, bias `[C]`, noise `[N or 1, 1, H, W]`; the result has y's dtype. Without `factors`, y has been
    multiplied by the gain already: its weights carry it. In float16 the result is clamped to ±256, as in StyleGAN2-ADA.
    """
    if factors is None and bias is None and noise is None and not activate and y.dtype != torch.float16:
        return y
    z: Tensor = _ScaleAct.apply(y, factors, bias, noise, gain, activate)
    return z


class _ScaleAct(Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        factors: Tensor | None,
        bias: Tensor | None,
        noise: Tensor | None,
        gain: float,
        activate: bool,
    ) -> Tensor:
        # A leaky ReLU lets a positive gain through.
        flat = y.new_zeros(()) if bias is None else _scaled(bias, gain, y.dtype).view(1, -1, 1, 1)
        scaled_noise = None if noise is None else _scaled(noise, gain, y.dtype).expand(len(y), -1, -1, -1)
        scaled_factors = None if factors is None else _scaled(factors, gain, y.dtype)[:, :, None, None]
        out = torch.empty_like(y)
        for part in _parts(y):
            z = out[part]
            if scaled_factors is None:
                torch.add(flat, y[part], out=z)
            else:
                torch.addcmul(flat, y[part], scaled_factors[part], out=z)
            if scaled_noise is not None:
                z.add_(scaled_noise[part])
            if activate:
                F.leaky_relu_(z, 0.2)
            if y.dtype == torch.float16:
                z.clamp_(-CLAMP, CLAMP)
        ctx.save_for_backward(y if factors is not None else None, factors, out)
        ctx.gain, ctx.activate = gain, activate
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
            grad, y, factors, out.detach(), ctx.gain, ctx.activate, wants
        )
        if over_bias is not None:
            over_bias = over_bias.to(ctx.bias_dtype)
        if over_noise is not None:
            over_noise = over_noise.sum(0, keepdim=True) if ctx.noise[0] == 1 else over_noise
            over_noise = over_noise.to(ctx.noise[1])
        return over_y, over_factors, over_bias, over_noise, None, None


def _scaled(x: Tensor, gain: float, dtype: torch.dtype) -> Tensor:
    """`x · gain` in another dtype, in one step."""
    return x.to(dtype) if gain == 1 else torch.mul(x, gain, out=torch.empty_like(x, dtype=dtype))


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
        factors = style.to(grad.dtype)[:, :, None, None]
        if torch.is_grad_enabled():
            return grad * factors, (grad * x).sum((2, 3), dtype=style.dtype) if ctx.needs_input_grad[1] else None
        over_x, over_style = torch.empty_like(grad), []
        for part in _parts(grad):
            over_style.append(torch.mul(grad[part], x[part], out=over_x[part]).sum((2, 3), dtype=style.dtype))
            torch.mul(grad[part], factors[part], out=over_x[part])
        return over_x, _joined(over_style)


def _act_grads(
    grad: Tensor, y: Any, factors: Any, out: Tensor, gain: float, activate: bool, wants: tuple[bool, ...]
) -> Any:
    """The gradients in operations that can be differentiated again; `out` only tells where the activation was on which side."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    if activate:
        grad = aten.leaky_relu_backward(grad, out, 0.2, True)
    if out.dtype == torch.float16:
        grad = grad * (out.abs() < CLAMP)
    return (
        grad if factors is None else grad * (factors * gain).to(grad.dtype)[:, :, None, None],
        (grad * y).sum((2, 3), dtype=factors.dtype) * gain if wants[0] else None,
        grad.sum((0, 2, 3), dtype=wide) * gain if wants[1] else None,
        grad.sum(1, keepdim=True, dtype=wide) * gain if wants[2] else None,
    )


def _act_grads_in_place(
    grad: Tensor, y: Any, factors: Any, out: Tensor, gain: float, activate: bool, wants: tuple[bool, ...]
) -> Any:
    """The same values, part by part and without keeping anything."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    scaled_factors = None if factors is None else _scaled(factors, gain, grad.dtype)[:, :, None, None]
    kept = not activate and scaled_factors is None and out.dtype != torch.float16
    over_y = grad if kept else torch.empty_like(out)
    over_factors, over_bias, over_noise = [], [], []
    for part in _parts(out):
        g = over_y[part]
        if activate:
            aten.leaky_relu_backward.grad_input(grad[part], out[part], 0.2, True, grad_input=g)
        elif not kept:
            g.copy_(grad[part])
        if out.dtype == torch.float16:
            g.mul_(out[part].abs() < CLAMP)
        if wants[1]:
            over_bias.append(g.sum((0, 2, 3), dtype=wide))
        if wants[2]:
            over_noise.append(g.sum(1, keepdim=True, dtype=wide))
        if wants[0]:
            over_factors.append((g * y[part]).sum((2, 3), dtype=wide))
        if scaled_factors is not None:
            g.mul_(scaled_factors[part])
    bias = torch.stack(over_bias).sum(0) if len(over_bias) > 1 else _joined(over_bias)
    small = [_joined(over_factors), bias, _joined(over_noise)]
    if gain != 1 and (found := [x for x in small if x is not None]):
        torch._foreach_mul_(found, gain)
    return over_y, *small


def _joined(parts: list[Tensor]) -> Tensor | None:
    return None if not parts else parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(x: Tensor) -> list[slice]:
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() < _CACHED * len(x):
        return [slice(None)]
    return [slice(i, i + 1) for i in range(len(x))]
