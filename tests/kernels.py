"""What kernels the convolutions of a piece of work are given."""

from __future__ import annotations

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestKernel(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The largest kernel that a convolution was given within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.side = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        if "conv" in function._overloadpacket.__name__:
            kernels = [value for value in arguments[:3] if isinstance(value, Tensor) and value.dim() == 4]
            self.side = max(self.side, kernels[-1].shape[-1])
        return function(*arguments, **(options or {}))
