"""Convolution, layer normalisation and scaled linear layers whose *second* derivatives are fast.

A gradient penalty differentiates a gradient. torch then derives the second derivatives of a convolution from transposed
convolutions with image-sized kernels, and those of a normalisation from dozens of element-wise steps in another memory layout.
Here both are written down once, in terms of the kernels of the first derivative. Values and first derivatives are torch's own.
A third derivative is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
_inputs_only = False


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """While this holds, the functions below compute no gradients of weights in a backward pass.

    For `autograd.grad(..., inputs=images)`: a custom function cannot see by itself that its weights are not asked for.
    """
    global _inputs_only
    before, _inputs_only = _inputs_only, True
    try:
        yield
    finally:
        _inputs_only = before


def weights_wanted() -> bool:
    """Whether a backward pass is to compute gradients of weights; see `input_gradients_only`."""
    return not _inputs_only


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """`F.conv2d`, differentiable twice at the cost of two first derivatives."""
    return _conv(x, weight, bias, stride, padding, False)


def conv_transpose2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """`F.conv_transpose2d`, likewise; weight `[I, O, K, K]`."""
    return _conv(x, weight, None, stride, padding, True)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool) -> Tensor:
    if not torch.is_grad_enabled():
        if transposed:
            return _convolve(x, weight, stride, padding, True)
        return F.conv2d(x, weight, bias, stride, padding)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    y: Tensor = _Conv.apply(x, weight, stride, padding, transposed)
    return y if bias is None else y + bias.view(-1, 1, 1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.group_norm` with one group, differentiable twice in about ten passes over memory."""
    if not torch.is_grad_enabled():
        return F.group_norm(x, 1, weight, bias, eps)
    y: Tensor = _LayerNorm.apply(x.to(weight.dtype), weight, bias, eps)
    return y


def scaled_linear(x: Tensor, weight: Tensor, bias: Tensor, scale: float, bias_scale: float) -> Tensor:
    """`scale · x @ weightᵀ + bias_scale · bias`: x `[N, I]`, weight `[O, I]`, bias `[O]` -> `[N, O]`, one matrix product a derivative."""
    y: Tensor = _ScaledLinear.apply(x, weight, bias, scale, bias_scale)
    return y


class _ScaledLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: float, bias_scale: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scales = scale, bias_scale
        return torch.addmm(bias, x, weight.t(), beta=bias_scale, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        scale, bias_scale = ctx.scales
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        over_x = _Product.apply(grad, weight, scale) if to_x else None
        over_weight = _Product.apply(grad.t(), x, scale) if to_weight and not _inputs_only else None
        over_bias = grad.sum(0) if to_bias and not _inputs_only else None
        if over_bias is not None and bias_scale != 1:
            over_bias = over_bias * bias_scale
        return over_x, over_weight, over_bias, None, None


class _Product(Function):
    """`scale · a @ b`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.scale = scale
        return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        over_a = _Product.apply(grad, b.t(), ctx.scale) if ctx.needs_input_grad[0] else None
        over_b = _Product.apply(a.t(), grad, ctx.scale) if ctx.needs_input_grad[1] else None
        return over_a, over_b, None


class _Conv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *shape: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        return _convolve(x, weight, *shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not _inputs_only)
        return *_ConvBackward.apply(grad, x, weight, wanted, *ctx.shape), None, None, None


class _ConvBackward(Function):
    """(dy, x, w) -> (dx, dw)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool], *shape: Any) -> Any:
        ctx.save_for_backward(grad, x, weight)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return _conv_grads(grad, x, weight, wanted, *shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, over_x: Tensor | None, over_w: Tensor | None) -> Any:
        """For L = <over_x, dx(dy, w)> + <over_w, dw(dy, x)>: both are linear in each of their arguments."""
        grad, x, weight = ctx.saved_tensors
        to_grad: Any = None
        to_x = to_weight = None
        if over_x is not None:
            to_grad = _convolve(over_x, weight, *ctx.shape)
            if ctx.needs_input_grad[2]:
                to_weight = _conv_grads(grad, over_x, weight, (False, True), *ctx.shape)[1]
        if over_w is not None:
            through_w = _convolve(x, over_w, *ctx.shape)
            to_grad = through_w if to_grad is None else to_grad + through_w
            if ctx.needs_input_grad[1]:
                to_x = _conv_grads(grad, x, over_w, (True, False), *ctx.shape)[0]
        return to_grad, to_x, to_weight, None, None, None, None


def _convolve(x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool) -> Tensor:
    convolve = F.conv_transpose2d if transposed else F.conv2d
    return convolve(x, weight, None, stride, padding)


def _conv_grads(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool], stride: int, padding: int, transposed: bool
) -> Any:
    over_weight = None
    if wanted[1] and stride > 1 and _by_products(grad, x, weight, padding):
        small, large = (x, grad) if transposed else (grad, x)
        over_weight, wanted = _strided_weight_grad(small, large, weight.shape[-1], stride), (wanted[0], False)
    if not any(wanted):
        return None, over_weight
    shape = ([stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1)
    over_x, found = aten.convolution_backward(grad, x, weight, None, *shape, [*wanted, False])[:2]
    return over_x, found if over_weight is None else over_weight


def _by_products(grad: Tensor, x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether `_strided_weight_grad` is faster: oneDNN's own falls to half of the convolution peak with stride 2."""
    wide = weight.shape[0] * weight.shape[1] >= 8192
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    return wide and on_cpu and padding == 0


def _strided_weight_grad(small: Tensor, large: Tensor, kernel: int, stride: int) -> Tensor:
    """Weight gradient `[S, L, K, K]` of the convolution from `large` `[N, L, H, W]` to `small` `[N, S, h, w]`, without padding.

    One matrix product for each row of the kernel, with the K pixels of that row side by side.
    """
    s, rows, channels = small.shape[1], small.shape[2], large.shape[1]
    left = small.permute(0, 2, 3, 1).reshape(-1, s).t()
    pixels = large.permute(0, 2, 3, 1)
    found = torch.empty(s, kernel, kernel * channels, dtype=small.dtype)  # channels-last, as the weights are
    for i in range(kernel):
        windows = pixels[:, i : i + stride * (rows - 1) + 1 : stride].unfold(2, kernel, stride)  # [N, h, w, L, K]
        torch.mm(left, windows.transpose(3, 4).reshape(left.shape[1], -1), out=found[:, i])
    return found.view(s, kernel, kernel, channels).permute(0, 3, 1, 2)


class _LayerNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        n, c = x.shape[:2]
        y, mean, rstd = aten.native_group_norm(x, weight, bias, n, c, x[0, 0].numel(), 1, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mean, rstd = ctx.saved_tensors
        return *_LayerNormBackward.apply(grad, x, weight, mean, rstd, not _inputs_only), None


class _LayerNormBackward(Function):
    """(dy, x, γ) -> (dx, dγ, dβ); dγ and dβ are not differentiated further.

    With x̂ = (x − μ)·r, ĝ = γ·dy and means over an image: dx = P ĝ, P v = r·(v − mean v − x̂·mean(x̂ v)), P being its own adjoint.
    For L = <v, P ĝ>, a = mean(x̂ v), b = mean(x̂ ĝ), s = mean(v ĝ) − mean v · mean ĝ − a·b and u = P v:
    dL/ddy = γ·u, dL/dγ = Σ dy·u, dL/dx = −r²·s·x̂ − r·(b·u + a·dx).
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, weights: bool) -> Any:
        found = _norm_grads(grad, x, weight, mean, rstd, weights)
        ctx.save_for_backward(grad, x, weight, mean, rstd, found[0])
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, over_weight: Tensor | None, over_bias: Tensor | None) -> Any:
        if over_weight is not None or over_bias is not None:
            raise RuntimeError("second derivatives through the gradient of a layer norm's weights are not supported")
        if v is None:
            return None, None, None, None, None, None
        grad, x, weight, mean, rstd, dx = ctx.saved_tensors
        u = _norm_grads(v, x, None, mean, rstd, False)[0]
        g = grad * weight.view(-1, 1, 1)
        size = x[0].numel()
        mean_v, mean_g = _sum(v) / size, _sum(g) / size
        a = rstd * (_dot(v, x) / size - mean * mean_v)
        b = rstd * (_dot(g, x) / size - mean * mean_g)
        s = _dot(v, g) / size - mean_v * mean_g - a * b
        slope = -(rstd**3) * s
        to_x = torch.addcmul(_wide(-slope * mean), x, _wide(slope))
        to_x.addcmul_(u, _wide(-rstd * b)).addcmul_(dx, _wide(-rstd * a))
        to_weight = (grad * u).sum((0, 2, 3))
        return u.mul_(weight.view(-1, 1, 1)), to_x, to_weight, None, None, None


def _norm_grads(grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, weights: bool) -> Any:
    n, c = x.shape[:2]
    return aten.native_group_norm_backward(
        grad, x, mean, rstd, weight, n, c, x[0, 0].numel(), 1, [True, weights, weights]
    )


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return _sum(x * y)


def _sum(x: Tensor) -> Tensor:
    """`[N, C, H, W]` -> `[N, 1]`; in the order of channels-last memory, so without a copy."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1).sum(1, keepdim=True)


def _wide(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1)
