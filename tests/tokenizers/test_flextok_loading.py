"""FlexTok checkpoints: both layouts, and one sentence for each thing that can be wrong."""

from __future__ import annotations

import builtins
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tokenizers.flextok_checks import (
    FOLDER,
    check_encoder,
    check_velocities,
    model,
    module,
    stored_header,
    write_checkpoint,
)
from tfgen import hub
from tfgen.errors import InputError, TfgenError
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.flextok_config import (
    parse_header,
)

CONFIG = json.loads((FOLDER / "config.json").read_text())
CPU = torch.device("cpu")


# Layouts


@pytest.mark.parametrize("layout", ["header", "json"])
def test_the_config_is_in_the_header_or_beside_it(tmp_path: Path, layout: str) -> None:
    tokenizer = FlexTok.from_pretrained(write_checkpoint(tmp_path / layout, layout=layout))
    assert tokenizer.config == model().config
    check_velocities(tokenizer, ([0, 1, 2],))
    check_encoder(tokenizer)


def test_the_header_is_python_and_no_json() -> None:
    header = stored_header()
    with pytest.raises(ValueError):
        json.loads(header["vae"])
    assert parse_header(header, "here") == CONFIG
    assert parse_header(header | {"format": "pt"}, "here") == CONFIG


def test_the_hub_recognises_a_checkpoint_in_either_layout(tmp_path: Path) -> None:
    for layout in ("header", "json"):
        folder = write_checkpoint(tmp_path / layout, layout=layout)
        assert hub.kind_of(folder) == "flextok"
        assert isinstance(hub.load_tokenizer(str(folder), CPU), FlexTok)
        defaults = hub.search_defaults(str(folder))
        assert defaults["prior"] == "uniform"
        assert defaults["verifier"] == "ViT-H-14/laion2b_s32b_b79k"


def test_weights_of_16_bits_are_read_as_what_they_are(tmp_path: Path) -> None:
    def halve(state: dict[str, Tensor]) -> None:
        state |= {
            name: tensor.half() if "attn" in name else tensor.bfloat16()
            for name, tensor in state.items()
        }

    tokenizer = FlexTok.from_pretrained(write_checkpoint(tmp_path / "half", tensors=halve))
    weight = tokenizer.decoder.blocks[0].wq.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model().decoder.blocks[0].wq.weight.half().float())


def test_only_the_decoders_blocks_are_in_the_dtype_asked_for() -> None:
    tokenizer = model(dtype=torch.bfloat16)
    dtypes = {name: value.dtype for name, value in tokenizer.networks.named_parameters()}
    low = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert low == {name for name in dtypes if name.startswith("decoder.blocks.")}
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
    check_encoder(tokenizer)  # the tokens of a picture do not depend on it


def test_the_vae_follows_its_own_dtype(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "free", config=lambda c: c["vae"].update(dtype_override=None)
    )
    assert FlexTok.from_pretrained(folder, dtype=torch.bfloat16).vae.dtype == torch.bfloat16
    assert FlexTok.from_pretrained(folder).vae.dtype == torch.float32


def test_a_fingerprint_is_of_the_file_not_of_the_dtype(tmp_path: Path) -> None:
    def nudge(state: dict[str, Tensor]) -> None:
        state["decoder.module_dict.dec_latent_dropout.nullcond"][3] += 1e-3

    copy = FlexTok.from_pretrained(write_checkpoint(tmp_path / "copy"))
    other = FlexTok.from_pretrained(write_checkpoint(tmp_path / "other", tensors=nudge))
    assert model().fingerprint() == model(dtype=torch.bfloat16).fingerprint()
    assert len({copy.fingerprint(), other.fingerprint(), model().fingerprint()}) == 3
    assert copy.fingerprint() == FlexTok.from_pretrained(tmp_path / "copy").fingerprint()


# Files


def refused(folder: Path, message: str, kind: type[TfgenError] = InputError) -> None:
    """FlexTok.from_pretrained refuses the folder with one sentence."""
    with pytest.raises(kind, match=message) as caught:
        FlexTok.from_pretrained(folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("kept", [0, 5, 3000, 1_000_000])
def test_a_truncated_file(tmp_path: Path, kept: int) -> None:
    folder = write_checkpoint(tmp_path / "cut")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "model.safetensors' is truncated, damaged, or no safetensors file")
    with pytest.raises(InputError, match="truncated"):
        hub.load_tokenizer(str(folder), CPU)


def test_a_wrong_dtype(tmp_path: Path) -> None:
    key = "decoder.module_dict.dec_to_patches.proj.bias"
    folder = write_checkpoint(tmp_path / "wide", tensors=lambda s: s.update({key: s[key].double()}))
    refused(folder, f"{key} is of type F64 instead of F32, F16, BF16")
    folder = write_checkpoint(tmp_path / "whole", tensors=lambda s: s.update({key: s[key].int()}))
    refused(folder, f"{key} is of type I32 instead of")
    for dtype in (torch.float16, torch.int64):
        with pytest.raises(InputError, match="torch.float32 or torch.bfloat16, not in torch"):
            FlexTok.from_pretrained(FOLDER, dtype=dtype)


def test_a_pickle(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "pickle")
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    refused(folder, "is a pickled checkpoint.*convert it to safetensors")
    torch.save({"a": torch.zeros(2)}, folder / "model.safetensors")
    refused(folder, "is a pickled checkpoint")
    with pytest.raises(InputError, match="pickled checkpoint"):
        hub.load_tokenizer(str(folder), CPU)


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
    refused(folder, "model.safetensors' describes no FlexTok")
    with pytest.raises(InputError, match="holds no tfgen model.*header of model.safetensors"):
        hub.load_tokenizer(str(folder), CPU)


def test_a_foreign_file_under_a_flextok_config(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "mixed", layout="json")
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
    refused(folder, "enc_register_module.registers is missing.*and [0-9]+ more")


def test_missing_and_unexpected_tensors_are_listed(tmp_path: Path) -> None:
    gone = [
        "decoder.module_dict.dec_transformer.blocks.1.attn.wq.weight",
        "decoder.module_dict.dec_transformer.blocks.0.adaLN_modulation.1.bias",
        "vae.vae.post_quant_conv.bias",
    ]

    def edit(state: dict[str, Tensor]) -> None:
        for key in gone:
            del state[key]
        state["decoder.module_dict.dec_transformer.blocks.2.attn.wq.weight"] = torch.zeros(64, 64)
        state["encoder.module_dict.enc_register_module.registers"] = torch.zeros(15, 64)

    folder = write_checkpoint(tmp_path / "edited", tensors=edit)
    with pytest.raises(InputError) as caught:
        FlexTok.from_pretrained(folder)
    message = str(caught.value)
    assert all(f"{key} is missing" in message for key in gone)
    assert "blocks.2.attn.wq.weight is unexpected" in message
    assert "registers is [15, 64] instead of [16, 64]" in message
    assert message.count("is missing") == 3 and message.count("is unexpected") == 1


def test_a_config_with_an_unknown_option(tmp_path: Path) -> None:
    for layout, file in (("header", "model.safetensors"), ("json", "config.json")):
        folder = write_checkpoint(
            tmp_path / layout,
            layout=layout,
            config=lambda c: module(c, "decoder.dec_transformer").update(window=8),
        )
        refused(folder, f"{file}' has decoder.dec_transformer.window = 8, which this version")


def test_a_damaged_config(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "json", layout="json")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json' is no JSON that can be read")


def test_no_weights_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    refused(tmp_path, "There is no weights file")


def test_without_diffusers_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "diffusers":
            raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(FOLDER, r'pip install "tfgen\[flextok\]"', TfgenError)
