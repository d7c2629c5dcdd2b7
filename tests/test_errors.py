"""What is quoted of errors of other code: one line, short, and the one that says why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stylex.errors import REASON_LENGTH, reason_of


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (ValueError("no such thing\nand a trace"), "no such thing"),
        (ValueError("\n\n  below \n"), "below"),
        (OSError(), "OSError"),
        (RuntimeError("x" * 999), "x" * REASON_LENGTH),
    ],
)
def test_one_line(error: Exception, wanted: str) -> None:
    assert reason_of(error) == wanted


def test_torchscript_says_why_in_its_last_line() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(4, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images)

    module = torch.jit.script(Reading())
    with pytest.raises(RuntimeError) as caught:
        module(torch.zeros(2, 3, 4, 4))
    assert "to have 4 channels, but got 3" in reason_of(caught.value)
