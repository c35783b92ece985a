"""The converter of the CPU engine as a process: what it writes, what it says, how it fails."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import load_file, save_file
from tests.support.checkpoints import copy_of, fill_nan, make_checkpoint

from outcrop.engines.gguf_arrays import mxfp4, narrow, permute, widen


def run(folder: Path, out: Path, *flags: str, largest_file_bytes: int | None = None) -> tuple[int, dict[str, Any]]:
    def limit() -> None:
        if largest_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))

    ended = subprocess.run(
        [sys.executable, "-m", "outcrop.engines.gguf_convert", "--checkpoint", folder, "--out", out, *flags],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout.splitlines()[-1])


def text(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def stored_as_bf16(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The values of *folder* rounded to bf16, with its shards rewritten in that type."""
    values = {}
    for shard in folder.glob("*.safetensors"):
        bits = {name: narrow(np.ascontiguousarray(value)) for name, value in load_file(shard).items()}
        values.update({name: widen(value) for name, value in bits.items()})
        save_file({name: value.view(np.float16) for name, value in bits.items()}, shard)
        data = shard.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + length].replace(b'"F16"', b'"BF16"')
        shard.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    return values


def test_bf16_is_the_upper_half_of_float32_rounded_to_even() -> None:
    values = np.array([1.0, -2.5, 1.0 + 2**-8, 1.0 + 3 * 2**-8, 3.0e38, 1e-40], dtype=np.float32)

    assert widen(narrow(values)).tolist()[:4] == [1.0, -2.5, 1.0, 1.0 + 2**-6]
    assert np.array_equal(narrow(widen(narrow(values))), narrow(values))


def test_permuting_pairs_the_two_halves_of_each_head() -> None:
    rows = np.arange(8).reshape(8, 1)

    assert permute(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_mxfp4_blocks_are_rearranged_without_changing_a_value() -> None:
    random = np.random.default_rng(5)
    blocks = random.integers(0, 256, (3, 2, 16), dtype=np.uint8)
    scales = random.integers(120, 134, (3, 2), dtype=np.uint8)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
    values = np.stack([table[blocks & 15], table[blocks >> 4]], axis=-1).reshape(3, 2, 32)
    wanted = (values * np.exp2(scales.astype(np.float32) - 127)[..., None]).reshape(3, 64)

    packed = mxfp4(blocks, scales)

    assert np.array_equal(dequantize(packed, GGMLQuantizationType.MXFP4), wanted)


@pytest.mark.parametrize(("kind", "worst"), [("q8_0", 0.01), ("q4_0", 0.15)])
def test_quantising_packs_matrices_and_keeps_vectors(tiny: Path, tmp_path: Path, kind: str, worst: float) -> None:
    stored = {name: value for shard in tiny.glob("*.safetensors") for name, value in load_file(shard).items()}

    code, done = run(tiny, tmp_path / "m.gguf", "--quantize", kind)

    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    down, wanted = tensors["blk.1.ffn_down.weight"], stored["model.layers.1.mlp.down_proj.weight"]
    assert (code, done["dtype"]) == (0, kind)
    assert down.tensor_type.name.lower() == kind
    assert np.abs(dequantize(down.data, down.tensor_type) - wanted).max() <= worst * np.abs(wanted).max()
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors["blk.1.attn_norm.weight"].tensor_type.name == "F32"


def test_a_checkpoint_becomes_one_file_with_probes(tiny: Path, tmp_path: Path) -> None:
    code, done = run(tiny, tmp_path / "m.gguf")

    reader = GGUFReader(tmp_path / "m.gguf")
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    stored = {name: value for shard in tiny.glob("*.safetensors") for name, value in load_file(shard).items()}
    assert (code, done["event"], done["dtype"]) == (0, "done", "f32")
    assert done["bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert np.array_equal(embedding.data, stored["model.embed_tokens.weight"])
    assert len(reader.tensors) == len(stored)
    assert text(reader, "tokenizer.ggml.eos_token_id") == 1
    assert text(reader, "tokenizer.ggml.pre") == "qwen2"
    assert len(text(reader, "tokenizer.ggml.tokens")) == 512
    assert len(done["probes"]) == 13
    assert done["probes"][-1]["ids"][0] == 0  # starts with a special token
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("dtype", ["bf16", "f32", "auto"])
def test_bf16_weights_keep_every_bit(tmp_path: Path, dtype: str) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen2")
    values = stored_as_bf16(folder)

    code, done = run(folder, tmp_path / "m.gguf", "--dtype", dtype)

    down = "blk.1.ffn_down.weight"
    tensor = next(tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors if tensor.name == down)
    assert code == 0
    assert done["dtype"] == ("bf16" if dtype == "bf16" else "f32")
    written = tensor.data.view("<u2") if dtype == "bf16" else tensor.data
    kept = widen(written) if dtype == "bf16" else written
    assert np.array_equal(kept, values["model.layers.1.mlp.down_proj.weight"])


def test_a_full_disk_is_named_and_leaves_nothing_behind(tiny: Path, tmp_path: Path) -> None:
    code, said = run(tiny, tmp_path / "m.gguf", largest_file_bytes=100_000)

    assert (code, said["event"]) == (4, "no_storage")
    assert str(tmp_path) in said["message"]
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite_are_refused_unless_they_were_scanned(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "broken")
    fill_nan(folder, "model.layers.0.mlp.up_proj.weight")

    by_hand, said = run(folder, tmp_path / "a.gguf")
    by_import, _ = run(folder, tmp_path / "b.gguf", "--scanned")

    assert by_hand == 3
    assert "model.layers.0.mlp.up_proj.weight holds values that are not finite" in said["message"]
    assert by_import == 0


def test_values_too_large_for_float16_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    shard = sorted(folder.glob("*.safetensors"))[0]
    tensors = {name: value.copy() for name, value in load_file(shard).items()}
    tensors["model.embed_tokens.weight"][3, 3] = 1e6
    save_file(tensors, shard)

    code, said = run(folder, tmp_path / "m.gguf", "--dtype", "f16")

    assert code == 3
    assert "model.embed_tokens.weight has values too large for f16" in said["message"]


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_model_may_store_its_output_matrix_only_if_it_is_the_input_matrix(tmp_path: Path, same: bool) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen2", shards=1)
    (shard,) = folder.glob("*.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    tensors = dict(load_file(shard))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.float32(0 if same else 1)
    save_file(tensors, shard)

    code, said = run(folder, tmp_path / "m.gguf")

    assert code == (0 if same else 3)
    assert same or "lm_head.weight differs from model.embed_tokens.weight" in said["message"]


def test_every_end_of_text_token_gets_a_place(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 40, 41, 42, 43, 44, 45]}))

    _, done = run(folder, tmp_path / "m.gguf")

    reader = GGUFReader(tmp_path / "m.gguf")
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")]
    assert [text(reader, key) for key in keys] == [1, 40, 41, 42, 43, 44]
    assert any("does not end a text at" in note for note in done["notes"])


def test_a_template_without_a_bos_token_gets_an_empty_one(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")

    run(folder, tmp_path / "m.gguf")

    template = text(GGUFReader(tmp_path / "m.gguf"), "tokenizer.chat_template")
    assert template == "{%- set bos_token = '' -%}{{ bos_token }}{{ messages[0].content }}"
