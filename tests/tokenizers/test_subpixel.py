"""The 3 x 3 convolution of an enlarged picture, computed on the small one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tfgen.tokenizers.subpixel import conv_enlarged


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 5, 4, 4), (3, 8, 5, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_convolution_of_the_enlarged_picture(shape, bias):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    conv = nn.Conv2d(shape[1], 6, 3, padding=1, bias=bias).double()
    expected = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(conv_enlarged(x, conv), expected, rtol=0, atol=1e-12)


def test_gradients_equal_those_of_the_enlarged_picture():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    weight = torch.randn(2, 4, 6, 10, dtype=torch.float64)
    gradients = []
    for enlarge in (conv_enlarged, lambda x, c: c(F.interpolate(x, scale_factor=2.0))):
        x = torch.linspace(-1, 1, 90, dtype=torch.float64).view(2, 3, 3, 5).requires_grad_()
        loss = (enlarge(x, conv) * weight).sum()
        gradients.append(torch.autograd.grad(loss, [x, conv.weight, conv.bias]))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
