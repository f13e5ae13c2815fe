"""PyTorch's tensors as images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevlm import ImageError
from edgevlm.inputs.images import load_image, load_images
from tests.support.image_writers import gradient

PIXELS = gradient(np.uint8, 3)


def refusal(tensor: torch.Tensor) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(tensor)
    return str(caught.value)


def test_tensors_are_read_as_arrays() -> None:
    tensor = torch.tensor(PIXELS)
    for source in (tensor, tensor.permute(1, 0, 2).permute(1, 0, 2), tensor / 255):
        np.testing.assert_array_equal(load_image(source), PIXELS)
    (found,) = load_images(tensor)
    np.testing.assert_array_equal(found, PIXELS)


def test_tensors_that_are_no_image() -> None:
    tensor = torch.tensor(PIXELS)
    assert "channels first" in refusal(tensor.permute(2, 0, 1))
    assert "BFloat16" in refusal(tensor.to(torch.bfloat16))
    assert "requires grad" in refusal((tensor / 255).requires_grad_())
    assert "meta device" in refusal(tensor.to("meta"))
