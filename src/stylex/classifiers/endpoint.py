"""A classifier behind HTTP: a black box that is sent images and answers with probabilities."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sqlite3
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from stylex.classifiers.classifier import Classifier
from stylex.classifiers.options import Hints
from stylex.classifiers.sources import FromProbabilities
from stylex.data.cache import cache_folder
from stylex.errors import ClassifierError

SCHEMES = ("http://", "https://")

BATCH, RETRIES, TIMEOUT_S = 32, 4, 30.0

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
"""Before the first repetition of a failed request, and the most; it doubles from one to the next."""

MAX_ANSWER_BYTES = 64 << 20

KEYS = ("probabilities", "predictions", "outputs", "scores", "logits")
"""Where in an answer the numbers may stand."""

TOLERANCE = 0.02
"""How far from 1 the sum of one image's probabilities may be."""

PROBE_SIZE = 64


class Endpoint(nn.Module):
    """Images [N, 3, H, W] in [0, 1] → what the endpoint answers [N, K].

    A request is a POST of `{"images": [base64 of a PNG, …]}`; the answer `{"probabilities": [[…], …]}`, with
    `"classes": [names]` if it likes, or the list alone. Pixels are rounded to 8 bits. Every distinct image is
    asked for once: answers are kept in memory and, with `store`, in an SQLite file.

    Args:
        url: where to.
        batch: images a request.
        rate: most requests a second, None for any number.
        timeout_s: seconds to wait for an answer.
        retries: how often a request is repeated that failed in a way that may pass (no connection, time-out,
            status 408, 425, 429 or 5xx).
        token: sent as `Authorization: Bearer …`.
        mode: of the PNG, "RGB" or "L".
        logits: the answers are logits, which may be any finite numbers.
    """

    differentiable = False

    def __init__(
        self,
        url: str,
        *,
        batch: int = BATCH,
        rate: float | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        token: str | None = None,
        mode: str = "RGB",
        logits: bool = False,
    ) -> None:
        super().__init__()
        self.url, self.batch, self.rate, self.mode, self.logits = url, batch, rate, mode, logits
        self.timeout_s, self.retries, self.token = timeout_s, retries, token
        self.fingerprint = hashlib.sha256(url.encode()).hexdigest()
        self.columns: int | None = None
        self.classes: tuple[str, ...] | None = None
        self.store: Path | None = None
        self._answers: dict[bytes, npt.NDArray[np.float32]] = {}
        self._last = 0.0
        handlers = [urllib.request.ProxyHandler({})] if _is_here(url) else []
        self._opener = urllib.request.build_opener(*handlers)

    def extra_repr(self) -> str:
        return self.url

    def train(self, mode: bool = True) -> Self:
        """An endpoint has no training mode."""
        self.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        rows = pixels.permute(0, 2, 3, 1).cpu().numpy()
        keys = [hashlib.sha256(row.tobytes() + str(row.shape).encode()).digest() for row in rows]
        self._recall(keys)
        wanted = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._answers}
        fresh = list(wanted.items())
        for start in range(0, len(fresh), self.batch):
            part = fresh[start : start + self.batch]
            found = self._ask([row for _, row in part])
            answers = dict(zip((key for key, _ in part), found, strict=True))
            self._answers |= answers
            self._remember(answers)
        if not keys:
            return torch.empty(0, self.columns or 0)
        return torch.from_numpy(np.stack([self._answers[key] for key in keys])).to(images.device)

    def _ask(self, rows: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        body = json.dumps({"images": [_png(row, self.mode) for row in rows]}).encode()
        content = self._read(body)
        if isinstance(content, dict):
            names = content.get("classes")
            if isinstance(names, list) and names:
                self.classes = tuple(str(name) for name in names)
            content = next((content[key] for key in KEYS if key in content), None)
        try:
            found = np.asarray(content, dtype=np.float32)
        except (TypeError, ValueError):
            found = np.empty(0, np.float32)
        if found.ndim == 1 and len(found) == len(rows) and len(rows):
            found = found[:, None]
        if found.ndim != 2 or len(found) != len(rows):
            what = f"{len(found)} rows" if found.ndim == 2 else "no list of lists of numbers"
            raise ClassifierError(
                f"{self.url}: was sent {len(rows)} images and answered with {what}; expected "
                f'{{"probabilities": [[…], …]}} with one row an image'
            )
        if self.columns is not None and found.shape[1] != self.columns:
            raise ClassifierError(
                f"{self.url}: answered with {found.shape[1]} numbers an image after {self.columns} before"
            )
        fault = self._fault(found)
        if fault:
            raise ClassifierError(f"{self.url}: answers with {fault}")
        self.columns = found.shape[1]
        return found

    def _fault(self, answers: npt.NDArray[np.float32]) -> str | None:
        """What is wrong with the numbers of an answer, or None: such are neither used nor remembered."""
        if not np.isfinite(answers).all():
            return "NaN or infinity"
        if self.logits or not answers.size or (answers.min() >= -1e-3 and answers.max() <= 1.001):
            return None
        return (
            f"numbers from {answers.min():.3g} to {answers.max():.3g}, which are no probabilities; "
            "say outputs=logits if they are logits"
        )

    def _read(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        pause, reason = FIRST_PAUSE_S, ""
        for attempt in range(self.retries + 1):
            self._wait_for_turn()
            asked = 0.0
            try:
                with self._opener.open(request, timeout=self.timeout_s) as answer:
                    text = answer.read(MAX_ANSWER_BYTES + 1)
                if len(text) > MAX_ANSWER_BYTES:
                    raise ClassifierError(f"{self.url}: answered with more than {MAX_ANSWER_BYTES >> 20} MiB")
                return json.loads(text)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code} {error.reason}"
                if error.code not in (408, 425, 429) and error.code < 500:
                    raise ClassifierError(f"{self.url}: refused the images ({reason})") from None
                with suppress(ValueError):
                    asked = float(error.headers.get("Retry-After") or 0)
            except TimeoutError:
                reason = f"no answer within {self.timeout_s:g} s"
            except (urllib.error.URLError, OSError) as error:
                cause = getattr(error, "reason", error)
                late = isinstance(cause, TimeoutError)
                reason = f"no answer within {self.timeout_s:g} s" if late else str(cause)
            except ValueError:
                raise ClassifierError(f"{self.url}: answered with something that is no JSON") from None
            if attempt < self.retries:
                time.sleep(min(LONGEST_PAUSE_S, max(pause, asked)))
                pause *= 2
        raise ClassifierError(
            f"{self.url}: {reason}, {self.retries + 1} times; is it running? "
            "The options timeout= and retries= give it more time"
        )

    def _wait_for_turn(self) -> None:
        if self.rate is not None:
            time.sleep(max(0.0, self._last + 1 / self.rate - time.monotonic()))
        self._last = time.monotonic()

    def _recall(self, keys: list[bytes]) -> None:
        """Answers that are on disk, into memory."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._answers]
        if self.store is None or not missing:
            return
        with suppress(sqlite3.Error), closing(_open(self.store)) as database:
            for key in missing:
                row = database.execute("SELECT answer FROM answers WHERE image = ?", (key,)).fetchone()
                answer = None if row is None else np.frombuffer(row[0], np.float32)
                if answer is not None and self._fault(answer) is None:
                    self._answers[key] = answer

    def _remember(self, answers: dict[bytes, npt.NDArray[np.float32]]) -> None:
        if self.store is None:
            return
        with suppress(sqlite3.Error, OSError), closing(_open(self.store)) as database, database:
            database.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?)",
                [(key, row.tobytes()) for key, row in answers.items()],
            )


def is_url(source: object) -> bool:
    return isinstance(source, str) and source.startswith(SCHEMES)


def from_endpoint(url: str, hints: Hints) -> Classifier:
    """A classifier behind `http://…` or `https://…`.

    Class names come from the hints or from the answer's `classes`. Two images are asked for at once; the
    answer is part of the fingerprint, so that answers of another model at the same address are not mixed up.

    Raises:
        ClassifierError: no answer, or one that is no probabilities of as many images as were sent; or a
            range, mean or std, which an endpoint that is sent PNG files sees to itself.
    """
    for option in ("range", "mean", "std"):
        if getattr(hints, option) is not None:
            raise ClassifierError(
                f"{url}: {option} means nothing for an endpoint, which is sent PNG files; leave it out"
            )
    token = None
    if hints.token is not None:
        token = os.environ.get(hints.token)
        if not token:
            raise ClassifierError(
                f"{url}: the environment variable {hints.token} is to hold its token and is empty"
            )
    channels = hints.channels or 3
    endpoint = Endpoint(
        url,
        batch=hints.batch or BATCH,
        rate=hints.rate,
        timeout_s=hints.timeout or TIMEOUT_S,
        retries=RETRIES if hints.retries is None else hints.retries,
        token=token,
        mode="L" if channels == 1 else "RGB",
        logits=hints.outputs == "logits",
    )
    size = hints.input_size or PROBE_SIZE
    ramp = torch.linspace(0, 1, size).expand(2, channels, size, size).clone()
    ramp[0] = 0.5
    answer = endpoint(ramp)
    activation = hints.activation or "softmax"
    if hints.outputs != "logits" and activation == "softmax" and answer.shape[1] > 1:
        _check_sums(url, answer)
    told = hashlib.sha256(url.encode() + answer.numpy().round(3).tobytes())
    endpoint.fingerprint = told.hexdigest()
    if hints.cache is not False:
        endpoint.store = _store(endpoint.fingerprint)
    columns = answer.shape[1]
    names = (
        hints.class_names or endpoint.classes or tuple(f"class {index}" for index in range(max(columns, 2)))
    )
    network: nn.Module = endpoint
    if hints.outputs != "logits":
        network = FromProbabilities(endpoint, activation)
    given = {"mean": (0.0,) * channels, "std": (1.0,) * channels, **hints.given()}
    return Classifier(
        network,
        architecture=f"endpoint {url}",
        single_logit=columns == 1,
        **{"input_size": hints.input_size, **given, "class_names": names},
    )


def _check_sums(url: str, answer: Tensor) -> None:
    sums = answer.sum(dim=1)
    if bool(((sums - 1).abs() > TOLERANCE).any()):
        raise ClassifierError(
            f"{url}: the probabilities of one image sum to {float(sums[0]):.3g}, not 1; "
            "say activation=sigmoid if the labels do not exclude each other"
        )


def _png(pixels: npt.NDArray[np.uint8], mode: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _is_here(url: str) -> bool:
    """Whether the address is this machine, which no proxy can reach."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _store(fingerprint: str) -> Path | None:
    try:
        folder = cache_folder().with_name("answers")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{fingerprint[:32]}.sqlite"
        with closing(_open(path)):
            return path
    except (OSError, sqlite3.Error):  # answers then live in memory alone
        return None


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=10)
    database.execute("CREATE TABLE IF NOT EXISTS answers (image BLOB PRIMARY KEY, answer BLOB)")
    return database
