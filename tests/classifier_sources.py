"""Small classifiers in the formats of other projects, and an endpoint on this machine."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

SIZE = 16

NAMES = ("old", "young")


def small_network(classes: int = 2, channels: int = 3, seed: int = 0) -> nn.Module:
    """A convolutional network whose answers differ plainly from image to image."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * (SIZE // 4) ** 2, classes),
    ).eval()
    with torch.no_grad():
        network[5].weight.mul_(20)
    return network


def save_torchscript(
    network: nn.Module, path: Path, *, channels: int = 3, batch: int = 2, about: str | None = None
) -> Path:
    """A TorchScript file; `about` is the text of the stylex.json within."""
    extra = None if about is None else {"stylex.json": about}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, torch.zeros(batch, channels, SIZE, SIZE))
        torch.jit.save(traced, str(path), _extra_files=extra)
    return path


def save_exported(network: nn.Module, path: Path, *, dynamic: bool = True, about: str | None = None) -> Path:
    """A program of torch.export; `about` is the text of the stylex.json within."""
    sizes = ({0: torch.export.Dim("n")},) if dynamic else None
    program = torch.export.export(network, (torch.zeros(2, 3, SIZE, SIZE),), dynamic_shapes=sizes)
    extra = None if about is None else {"stylex.json": about}
    torch.export.save(program, str(path), extra_files=extra)
    return path


def save_onnx(
    network: nn.Module, path: Path, *, channels: int = 3, dynamic: bool = True, channels_last: bool = False
) -> Path:
    """An ONNX file, of any batch or of two images; with channels_last it takes [N, H, W, C]."""
    shape = (2, SIZE, SIZE, channels) if channels_last else (2, channels, SIZE, SIZE)
    whole = nn.Sequential(_ToChannelsFirst(), network) if channels_last else network
    axes = {"pixels": {0: "n"}, "logits": {0: "n"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            whole.eval(),
            (torch.zeros(shape),),
            str(path),
            dynamo=False,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_axes=axes,
        )
    return path


class _ToChannelsFirst(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 3, 1, 2)


def save_timm(path: Path, *, classes: int = 2, channels: int = 3, seed: int = 0) -> nn.Module:
    """Weights of timm's smallest MobileNetV3."""
    import timm

    torch.manual_seed(seed)
    network = timm.create_model(TIMM_NAME, pretrained=False, num_classes=classes, in_chans=channels).eval()
    save_file(network.state_dict(), path)
    return network


TIMM_NAME = "mobilenetv3_small_050"


def save_vit(folder: Path, *, channels: int = 3, labels: tuple[str, ...] = NAMES, **config: Any) -> nn.Module:
    """A small vision transformer as `save_pretrained` writes it, with its preprocessor."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    settings = ViTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=4,
        num_channels=channels,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
        **config,
    )
    model = ViTForImageClassification(settings).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(50)
    model.save_pretrained(folder)
    preprocessor = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.4, 0.5, 0.6][:channels],
        "image_std": [0.2, 0.25, 0.3][:channels],
        "rescale_factor": 1 / 255,
        "size": {"height": SIZE, "width": SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


Answer = Callable[[Tensor], Any]
"""Images [N, 3, H, W] in [0, 1] → what the endpoint answers, as JSON would hold it."""


class Served:
    """What an endpoint was asked: sizes of the requests, and their headers."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.delay_s = 0.0
        self.url = ""


@contextmanager
def endpoint(answer: Answer) -> Iterator[Served]:
    """An endpoint on loopback; `failures` are sent, first come first, in place of answers."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.headers.append(dict(self.headers))
            served.times.append(time.monotonic())
            if served.delay_s:
                time.sleep(served.delay_s)
            if served.failures:
                status, headers = served.failures.pop(0)
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                return
            images = [_decoded(text) for text in body["images"]]
            served.batches.append(len(images))
            content = answer(torch.stack(images))
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(200)
            self.end_headers()
            try:
                self.wfile.write(text)
            except BrokenPipeError:  # who asked has given up
                return

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/classify"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def probabilities_of(network: nn.Module) -> Answer:
    """Answers with the softmax of a network that takes images in [-1, 1]."""

    def answer(images: Tensor) -> Any:
        with torch.no_grad():
            shares = network(images * 2 - 1).softmax(dim=1)
        return {"probabilities": shares.tolist(), "classes": list(NAMES)}

    return answer


def _decoded(text: str) -> Tensor:
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        pixels = np.asarray(picture)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
