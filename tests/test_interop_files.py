"""Whole files: pickles of the shape of NVIDIA's, `.pt`, safetensors, damaged ones and hostile ones."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import golden
from stylex.errors import CheckpointError
from stylex.interop import load_stylegan2, read_checkpoint

Golden = dict[str, Tensor]


@pytest.fixture(scope="module")
def ada() -> Golden:
    return golden.load("stylegan2_ada")


@pytest.fixture(scope="module")
def rosi() -> Golden:
    return golden.load("rosinality")


class Makers:
    """Stand-ins for `torch_utils.persistence` and `dnnlib`, importable only while a pickle is written."""

    def __init__(self) -> None:
        persistence = types.ModuleType("torch_utils.persistence")
        dnnlib = types.ModuleType("dnnlib.util")

        def _reconstruct_persistent_obj(meta: dict[str, Any]) -> object:
            raise AssertionError("ran code of the file's makers")

        _reconstruct_persistent_obj.__module__ = persistence.__name__
        _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
        self.easy_dict = type("EasyDict", (dict,), {"__module__": dnnlib.__name__})
        persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
        dnnlib.EasyDict = self.easy_dict  # type: ignore[attr-defined]
        self.reconstruct = _reconstruct_persistent_obj
        self.modules = {
            "torch_utils": types.ModuleType("torch_utils"),
            "torch_utils.persistence": persistence,
            "dnnlib": types.ModuleType("dnnlib"),
            "dnnlib.util": dnnlib,
        }

    def network(self, state: dict[str, Tensor], class_name: str, **settings: Any) -> nn.Module:
        """A module tree with these entries, each node pickled as NVIDIA's persistence does it."""
        makers = self

        class Persistent(nn.Module):
            def __reduce__(self) -> tuple[Any, ...]:
                meta = {
                    "type": "class",
                    "version": 6,
                    "module_src": "raise SystemExit('source text was run')",
                    "class_name": self.label,
                    "state": super().__reduce__()[2],
                }
                return makers.reconstruct, (meta,), None

        def node(label: str) -> Persistent:
            made = Persistent()
            made.label = label
            made._init_args = ()
            made._init_kwargs = makers.easy_dict(settings if label == class_name else {})
            made.weight_gain = 1 / np.sqrt(np.float64(9))
            made.register_buffer("scratch", torch.zeros(2), persistent=False)
            return made

        root = node(class_name)
        for key, value in state.items():
            *path, name = key.split(".")
            place: nn.Module = root
            for step in path:
                if step not in place._modules:
                    place.add_module(step, node("Layer"))
                place = place.get_submodule(step)
            if name in ("weight", "bias", "const", "noise_strength"):
                place.register_parameter(name, nn.Parameter(value))
            else:
                place.register_buffer(name, value)
        root.plain = nn.Sequential(nn.Identity())
        return root

    def dump(self, path: Path, content: object, protocol: int = 3) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            for name, module in self.modules.items():
                patch.setitem(sys.modules, name, module)
            path.write_bytes(pickle.dumps(content, protocol=protocol))
        return path


@pytest.fixture
def ada_pickle(ada: Golden, tmp_path: Path) -> Path:
    makers = Makers()
    generator = golden.section(ada, "G.")
    worse = {key: value + 1 for key, value in generator.items()}
    epilogue = makers.easy_dict(mbstd_group_size=3)
    content = {
        "training_set_kwargs": makers.easy_dict(path="images.zip", use_labels=False),
        "augment_pipe": None,
        "G": makers.network(worse, "Generator"),
        "D": makers.network(golden.section(ada, "D."), "Discriminator", epilogue_kwargs=epilogue),
        "G_ema": makers.network(generator, "Generator", z_dim=24, img_resolution=32),
    }
    return makers.dump(tmp_path / "network.pkl", content)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_gives_back_every_entry(ada: Golden, tmp_path: Path, protocol: int) -> None:
    makers = Makers()
    state = golden.section(ada, "G.")
    network = makers.network(state, "Generator", z_dim=24)
    path = makers.dump(tmp_path / "network.pkl", {"G_ema": network, "set": {1, 2}, "D": None}, protocol)
    (name, found), *others = read_checkpoint(path).items()
    assert (name, others) == ("G_ema", [])
    assert (found.class_name, found.settings) == ("Generator", {"z_dim": 24})
    assert found.tensors.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(found.tensors[key], value), key


def test_tensors_of_any_layout_and_type_survive(tmp_path: Path) -> None:
    makers = Makers()
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "weight": base.t()[1:4, ::2],
        "fp16": torch.randn(2, 3, 4, 5).half().contiguous(memory_format=torch.channels_last),
        "bf16": torch.randn(3).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False]),
    }
    path = makers.dump(tmp_path / "network.pkl", {"G": makers.network(state, "Odd")})
    found = read_checkpoint(path)["G"].tensors
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


def test_a_pickle_becomes_networks_that_give_the_golden_images(ada: Golden, ada_pickle: Path) -> None:
    model = load_stylegan2(ada_pickle)
    golden.assert_equal(model.generator(model.mapping(ada["z"])), ada["image_noise_const"])
    assert model.discriminator is not None
    golden.assert_equal(model.discriminator(ada["image_noise_const"]), ada["d_logits"])
    assert model.discriminator.deviation_group == 3
    assert model.layout == "stylegan2-ada"


@pytest.mark.parametrize("zipped", [True, False])
def test_rosinality_file(rosi: Golden, tmp_path: Path, zipped: bool) -> None:
    generator = golden.section(rosi, "G.")
    mean = torch.randn(24)
    content = {
        "g": {key: value + 1 for key, value in generator.items()},
        "d": golden.section(rosi, "D."),
        "g_ema": OrderedDict(generator),
        "g_optim": torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict(),
        "args": argparse.Namespace(size=32, lr=0.002),
        "ada_aug_p": 0.0,
        "latent_avg": mean,
    }
    path = tmp_path / "550000.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert set(read_checkpoint(path)) == {"g", "d", "g_ema", ""}
    model = load_stylegan2(path)
    golden.assert_equal(model.generator(rosi["w"]), rosi["image_stored_noise"])
    assert torch.equal(model.mapping.mean_w, mean)
    assert model.discriminator is not None
    golden.assert_equal(model.discriminator(rosi["image_stored_noise"]), rosi["d_logits"])


def test_bare_state_dict_and_both_kinds_of_safetensors(ada: Golden, rosi: Golden, tmp_path: Path) -> None:
    torch.save(golden.section(rosi, "G."), tmp_path / "bare.pt")
    save_file(golden.section(ada, "G."), tmp_path / "bare.safetensors")
    prefixed = {key: value for key, value in ada.items() if key.startswith(("G.", "D."))}
    save_file(prefixed, tmp_path / "both.safetensors")
    bare = load_stylegan2(tmp_path / "bare.pt")
    golden.assert_equal(bare.generator(rosi["w"]), rosi["image_stored_noise"])
    assert bare.discriminator is None
    assert load_stylegan2(tmp_path / "bare.safetensors").discriminator is None
    both = load_stylegan2(tmp_path / "both.safetensors")
    golden.assert_equal(both.generator(ada["w"][:, 0]), ada["image_noise_const"])
    assert both.discriminator is not None


def test_the_names_of_a_misfit_come_with_the_file(rosi: Golden, tmp_path: Path) -> None:
    state = golden.section(rosi, "G.")
    del state["noises.noise_6"]
    torch.save({"g_ema": state}, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=r"short\.pt: rosinality generator: missing noises\.noise_6"):
        load_stylegan2(tmp_path / "short.pt")


def test_a_file_without_a_stylegan2_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"no StyleGAN2 generator .* it holds 'model'"):
        load_stylegan2(tmp_path / "other.pt")


def damaged(kind: str, folder: Path, pickled: bytes) -> Path:
    whole = io.BytesIO()
    torch.save({"g": {"a": torch.zeros(1000)}}, whole)
    contents = {
        "truncated.pkl": pickled[: len(pickled) // 2],
        "truncated.pt": whole.getvalue()[:-500],
        "truncated.safetensors": b"\xff\0\0\0\0\0\0\0" + b'{"a":',
        "text.pt": b"<html>not found</html>",
        "empty.pkl": b"",
        "list.pkl": pickle.dumps([1, 2, 3]),
        "numbers.pkl": pickle.dumps({"G": 1}),
        "opcodes.pkl": b"\x80\x03}q\x00(X\x01\0\0\0GN\x93R.",
    }
    (folder / kind).write_bytes(contents[kind])
    return folder / kind


@pytest.mark.parametrize(
    "kind",
    [
        *("truncated.pkl", "truncated.pt", "truncated.safetensors", "text.pt"),
        *("empty.pkl", "list.pkl", "numbers.pkl", "opcodes.pkl"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(kind: str, ada_pickle: Path, tmp_path: Path) -> None:
    path = damaged(kind, tmp_path, ada_pickle.read_bytes())
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pkl: cannot be read \(No such file"):
        read_checkpoint(tmp_path / "none.pkl")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def hostile(kind: str, marker: Path) -> object:
    """Objects that would create `marker` if anything in them ran."""
    command = f"touch {marker}"
    inner = io.BytesIO()
    torch.save(Call(os.system, command), inner, _use_new_zipfile_serialization=False)
    return {
        "system": Call(os.system, command),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "getattr": Call(getattr, "", "join"),
        "subprocess": Call(subprocess.getoutput, command),
        "torch.load": Call(torch.load, str(marker)),
        "partial": Call(torch.utils._pytree.tree_map, os.system, [command]),
        "storage": Call(torch.storage._load_from_bytes, inner.getvalue()),
    }[kind]


HOSTILE = ["system", "exec", "getattr", "subprocess", "torch.load", "partial", "storage"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_in_a_pickle_is_refused_and_never_runs(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({"G_ema": hostile(kind, marker)}, protocol=3))
    with pytest.raises(CheckpointError, match="refused") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()
    if kind in ("system", "storage"):
        assert f"{os.name}.system" in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pt_file_is_refused_and_never_runs(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "model.pt"
    torch.save({"g_ema": Call(os.system, f"touch {marker}")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds code .*posix\.system.* refused") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def opcodes(module: str, name: str, rest: bytes) -> bytes:
    """A pickle that names a global and goes on with `rest`."""
    return b"\x80\x03c" + f"{module}\n{name}\n".encode() + rest


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch.storage", "_load_from_bytes"),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("torch.nn.modules.linear", "Linear"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
    ],
)
@pytest.mark.parametrize(
    "state", [b"}X\x05\0\0\0valueNs", b"N}X\x05\0\0\0valueNs\x86"], ids=["attributes", "slots"]
)
def test_a_pickle_cannot_change_what_it_is_given(
    module: str, name: str, state: bytes, ada_pickle: Path
) -> None:
    path = ada_pickle.with_name("hostile.pkl")
    path.write_bytes(opcodes(module, name, state + b"b."))
    with pytest.raises(CheckpointError, match=r"damaged|tries to set"):
        read_checkpoint(path)
    assert set(read_checkpoint(ada_pickle)) == {"G", "D", "G_ema"}


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    storage = torch.storage.TypedStorage(wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32)
    rebuild = torch._utils._rebuild_tensor_v2
    path = tmp_path / "network.pkl"
    for offset, size, stride in ((0, (5,), (1,)), (3, (2,), (1,)), (0, (2,), (1000,)), (-1, (1,), (1,))):
        call = Call(rebuild, storage, offset, size, stride, False, OrderedDict())
        path.write_bytes(pickle.dumps({"G": call}, protocol=3))
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path)
