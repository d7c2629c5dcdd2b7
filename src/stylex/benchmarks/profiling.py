"""Where a step's time goes, by kind of operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "_convolution", "convolution", "cudnn_convolution",
                             "mkldnn::_convolution_pointwise", "_nnpack_spatial_convolution",
                             "_slow_conv2d_forward", "slow_conv_transpose2d"),
    "matrix product": ("mm", "addmm", "bmm"),
    "leaky ReLU": ("leaky_relu", "leaky_relu_backward", "threshold_backward", "clamp_min", "relu"),
    "multiplication": ("mul", "addcmul", "mul_", "div"),
    "sum and addition": ("sum", "add", "add_", "mean", "sub"),
    "copy and number format": ("copy_", "clone", "cat", "fill_", "zero_"),
    "resampling": ("upsample_bilinear2d", "upsample_bilinear2d_backward", "avg_pool2d", "avg_pool2d_backward",
                   "constant_pad_nd"),
    "optimiser and average": ("_fused_adam_", "lerp_", "_foreach_lerp_"),
    "views and memory": ("to", "_to_copy", "empty", "empty_like", "empty_strided", "as_strided", "view",
                         "reshape", "expand", "transpose", "permute", "select", "slice", "narrow",
                         "unsqueeze", "detach", "index"),
}  # fmt: skip
"""Kinds of operation by the names of PyTorch's operators, without "aten::".

Where a gradient's kernel makes a transposed convolution (`networks.convolution`) it counts as backward.
"""

DIFFERENTIATION = "autograd::engine::", "_Convolution", "_Correlation", "_Fir", "_Energy"
"""How the names begin of what leads to gradients: PyTorch's own, and the time of our functions in Python."""


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of convolutions and matrix products within it, by PyTorch's own formulas.

    A multiplication and an addition count as two. PyTorch's `FlopCounterMode` also tells modules apart, with
    hooks that a gradient of a gradient (R1) does not bear.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*arguments, **(options or {}), out_val=result)
        return result


@dataclass(frozen=True)
class Share:
    """A kind of operation and its share of the time of all operators on the CPU."""

    kind: str
    share: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def shares(work: Callable[[], object]) -> list[Share]:
    """Share of the operators' own time by kind, largest first; what no kind names is "other"."""
    return as_shares(times_by_kind(work))


def times_by_kind(work: Callable[[], object], *, by_kernel: bool = False) -> dict[str, float]:
    """Seconds of the operators' own time on the CPU by kind; with `by_kernel` convolutions by theirs.

    Convolutions by tiles (`networks.winograd`) are matrix products here and copies.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=by_kernel) as found:
        work()
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    times: dict[str, float] = {}
    for event in found.events() or ():
        kind = kinds.get(event.name.removeprefix("aten::"), "other")
        if event.name.startswith(DIFFERENTIATION):
            kind = "differentiation itself"
        if by_kernel and kind.startswith("convolution"):
            kind = _kernel(event)
        times[kind] = times.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    return times


def as_shares(times: Mapping[str, float]) -> list[Share]:
    """Shares of the whole, largest first."""
    total = sum(times.values())
    ordered = sorted(times.items(), key=lambda entry: -entry[1])
    return [Share(kind, time / total) for kind, time in ordered]


def _kernel(event: Any) -> str:
    """What sort of convolution, by the shapes of images [N, C, H, W] and weight [O, C / groups, h, w].

    A transposed one is a gradient's kernel where nothing is trained, or is made by `_convolution` itself,
    whose seventh argument says so; else that one only passes on to others.
    """
    if event.name == "aten::convolution_backward":
        return "transposed convolution"
    passes_on = event.name in ("aten::convolution", "aten::_convolution")
    transposed = event.name == "aten::_convolution" and event.concrete_inputs[6]
    if passes_on and not transposed:
        return "other"
    images, weight = event.input_shapes[:2]
    if weight[1] == 1 and images[1] > 1:
        return "depthwise convolution"
    return "transposed convolution" if transposed else f"convolution {weight[2]} × {weight[3]}"
