"""Command lines of the engines for GPUs, as they follow from a model and the hardware."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from outcrop.engines import gpu_fit, sglang, tensorrt_llm, vllm_command
from outcrop.engines.base import CopySpec
from outcrop.engines.hardware import Gpu, Hardware, amd_gpus, read_nvidia
from outcrop.engines.model_shape import ModelShape, thought_style, tool_style
from outcrop.engines.on_gpus import Options, sweep
from outcrop.engines.sglang import SGLang
from outcrop.engines.tensorrt_llm import TensorRTLLM
from outcrop.engines.vllm import Vllm
from outcrop.engines.vllm_logs import kv_tokens, stage, stage_seconds
from outcrop.errors import EngineMissing, InvalidRequest
from outcrop.inference.canonical import GenerateRequest

H100S = Hardware(64, 512 << 30, tuple(Gpu(n, "NVIDIA H100 80GB HBM3", 80 << 30, "nvidia", 9.0) for n in range(4)))
T4 = Hardware(8, 64 << 30, (Gpu(0, "Tesla T4", 16 << 30, "nvidia", 7.5),))
MI300 = Hardware(64, 512 << 30, (Gpu(0, "AMD Instinct MI300X", 192 << 30, "amd"),))
CPU = Hardware(8, 64 << 30, cpu_flags=frozenset({"avx2"}))
OPTIONS = Options("/opt/engine", Path("/copies"))


def spec(
    billions: float,
    *,
    context: int = 8192,
    heads: int = 64,
    kv_heads: int = 8,
    dtype: str = "BF16",
    tools: str | None = "hermes",
    thoughts: str | None = None,
) -> CopySpec:
    """A model of so many parameters at two bytes each."""
    model = ModelShape(
        dtype=dtype,
        attention_heads=heads,
        kv_heads=kv_heads,
        kv_bytes_per_token=200_000,
        weight_bytes=int(billions * 2e9),
        tool_style=tools,
        thought_style=thoughts,
    )
    return CopySpec("m1", Path("/store/m1/model.gguf"), context, 4, 2, kv_f32=False, engine="vllm", model=model)


def flags(argv: tuple[str, ...]) -> dict[str, str]:
    return {argv[at]: argv[at + 1] for at in range(len(argv) - 1) if argv[at].startswith("--")}


@pytest.mark.parametrize(("billions", "ranks"), [(8, 1), (30, 1), (35, 2), (70, 4)])
def test_a_model_takes_the_fewest_gpus_that_hold_it_with_its_context(billions: float, ranks: int) -> None:
    assert gpu_fit.fit(spec(billions), H100S, memory_share=0.9).tensor_parallel == ranks


def test_attention_heads_are_split_evenly() -> None:
    assert gpu_fit.splits(12, 8) == [1, 2, 4]
    assert gpu_fit.splits(7, 8) == [1]


def test_a_context_that_no_number_of_gpus_holds_is_cut_and_said_so() -> None:
    found = vllm_command.served(spec(30, context=1_000_000, heads=1), H100S, OPTIONS)

    assert 2048 <= found.context_tokens < 200_000
    assert flags(found.argv)["--max-model-len"] == str(found.context_tokens)
    assert "context cut from 1000000" in found.reasons[1]


def test_a_model_that_does_not_fit_is_refused_with_the_sizes() -> None:
    with pytest.raises(EngineMissing, match=r"810\.0 GB .* 4 GPU\(s\) of 344 GB"):
        gpu_fit.fit(spec(405), H100S, memory_share=0.9)


def test_vllm_on_gpus_is_told_everything_and_no_secret() -> None:
    engine = Vllm(OPTIONS, H100S, request_timeout_s=1)
    placed = msgspec.structs.replace(spec(70, thoughts="qwen3"), devices=(2, 3))
    config = json.loads(engine.child_config(placed, "hidden"))
    given = flags(tuple(config["argv"]))

    assert given["--tensor-parallel-size"] == "4"
    assert given["--generation-config"] == "vllm"
    assert (given["--tool-call-parser"], given["--reasoning-parser"]) == ("hermes", "qwen3")
    assert "--enable-sleep-mode" in config["argv"]
    assert config["environment"]["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert config["environment"]["VLLM_CACHE_ROOT"] == "/copies/m1/cache"
    assert config["links"] == {"/copies/m1/checkpoint": "/store/m1/checkpoint"}
    assert "hidden" not in " ".join(config["argv"] + engine.command(placed))


def test_float16_where_a_gpu_has_no_bfloat16_and_no_sleep_where_the_allocator_is_not_cuda_s() -> None:
    assert flags(vllm_command.served(spec(3), T4, OPTIONS).argv)["--dtype"] == "half"
    amd = vllm_command.served(spec(70), MI300, OPTIONS)
    assert not amd.sleep_levels
    assert "--enable-sleep-mode" not in amd.argv


@pytest.mark.parametrize(
    ("wanted", "quantisation", "levels"),
    [("auto", None, (1, 2)), ("auto", "fp8", (1,)), ("2", "fp8", (1,)), ("2", None, (2,)), ("off", None, ())],
)
def test_the_levels_at_which_a_copy_may_sleep_follow_from_setting_and_checkpoint_with_a_reason(
    wanted: str, quantisation: str | None, levels: tuple[int, ...]
) -> None:
    one = spec(8)
    one = msgspec.structs.replace(one, model=msgspec.structs.replace(one.model, quantisation=quantisation))
    options = msgspec.structs.replace(OPTIONS, sleep=wanted)
    found = vllm_command.served(one, H100S, options)
    ways = Vllm(options, H100S, request_timeout_s=1).asleep(one)

    assert found.sleep_levels == levels
    assert found.reasons[-1].startswith(f"sleep levels {', '.join(map(str, levels)) or 'none'}: ")
    assert ("--enable-sleep-mode" in found.argv) == bool(levels)
    assert [way.level for way in ways] == list(levels)
    assert all(way.spec.gpus == 0 and not way.spec.devices for way in ways)
    assert [way.spec.kv_bytes - one.kv_bytes for way in ways] == [
        one.model.weight_bytes if level == 1 else 0 for level in levels
    ]


def test_a_copy_has_the_slots_that_its_cache_holds_as_the_log_says() -> None:
    engine = Vllm(OPTIONS, H100S, request_timeout_s=1)

    assert engine.slots(spec(8), LOG) == 503216 // 2048
    assert engine.slots(spec(8), LOG.replace("503,216", "1,024")) == 1
    assert engine.slots(spec(8), "nothing of the cache") is None


def test_without_a_gpu_vllm_runs_on_the_processor_in_what_it_computes_well() -> None:
    small = vllm_command.served(spec(0.5), CPU, OPTIONS)
    large = vllm_command.served(spec(14), CPU, OPTIONS)
    modern = vllm_command.served(spec(0.5), Hardware(8, 64 << 30, cpu_flags=frozenset({"avx512_bf16"})), OPTIONS)

    assert [flags(found.argv)["--dtype"] for found in (small, large, modern)] == ["float32", "bfloat16", "bfloat16"]
    assert small.environment["OMP_NUM_THREADS"] == "2"
    assert small.gpus == 0
    assert small.host_bytes > 2e9 + int(small.environment["VLLM_CPU_KVCACHE_SPACE"]) * 2**30


def test_a_copy_on_gpus_takes_no_core_and_one_on_the_processor_takes_its_memory() -> None:
    on_gpus = Vllm(OPTIONS, H100S, request_timeout_s=1).fitted(spec(70))
    on_cpu = Vllm(OPTIONS, CPU, request_timeout_s=1).fitted(spec(0.5))

    assert (on_gpus.gpus, on_gpus.threads, on_gpus.weight_bytes) == (4, 0, 0)
    assert (on_cpu.gpus, on_cpu.threads) == (0, 2)
    assert on_cpu.kv_bytes > 4e9
    assert on_gpus.start_s > 60 + 100


def test_a_copy_is_told_its_gpus_by_the_driver_s_index() -> None:
    granted = Hardware(8, 64 << 30, tuple(Gpu(n, "H100", 80 << 30, "nvidia", 9.0) for n in (4, 6)))
    placed = msgspec.structs.replace(spec(8), devices=(1,))

    config = json.loads(Vllm(OPTIONS, granted, request_timeout_s=1).child_config(placed, "k"))
    assert config["environment"]["CUDA_VISIBLE_DEVICES"] == "6"


def test_what_was_kept_of_models_that_are_gone_is_swept(tmp_path: Path) -> None:
    for name in ("kept", "gone"):
        (tmp_path / name / "cache").mkdir(parents=True)
    sweep(tmp_path, {"kept"})

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_operators_arguments_come_last_so_that_they_win() -> None:
    options = Options("/opt/engine", Path("/copies"), extra=("--max-model-len", "100"))

    assert vllm_command.served(spec(8), H100S, options).argv[-2:] == ("--max-model-len", "100")


def test_vllm_listens_on_a_socket_and_what_cannot_is_guarded() -> None:
    lines = {
        kind: json.loads(kind(OPTIONS, H100S, request_timeout_s=1).child_config(spec(8), "k3y"))
        for kind in (Vllm, SGLang, tensorrt_llm.TensorRTLLM)
    }

    assert flags(tuple(lines[Vllm]["argv"]))["--uds"] == "{socket}"
    assert "--port" not in lines[Vllm]["argv"]
    assert [line["is_guarded"] for line in lines.values()] == [False, True, True]
    assert not any("k3y" in word for line in lines.values() for word in line["argv"])


def test_sglang_s_command_line() -> None:
    config = json.loads(SGLang(OPTIONS, H100S, request_timeout_s=1).child_config(spec(70, tools="llama3_json"), "k3y"))

    assert flags(tuple(config["argv"]))["--port"] == "{port}"
    assert flags(tuple(config["argv"]))["--tool-call-parser"] == "llama3"
    assert flags(tuple(config["argv"]))["--tp-size"] == "4"


def test_sglang_is_asked_for_constraints_in_its_own_words() -> None:
    engine = SGLang(OPTIONS, H100S, request_timeout_s=1)

    def body(**outputs: object) -> dict[str, object]:
        request = GenerateRequest("chat", {"messages": [], "structured_outputs": outputs})
        return {key: value for key, value in engine.planned(request).body.items() if key not in ("messages", "model")}

    assert body(regex="a+") == {"regex": "a+"}
    assert body(choice=["a.b", "c"]) == {"regex": "(a\\.b|c)"}
    assert body(grammar="root ::= x") == {"ebnf": "root ::= x"}
    assert body(json={"type": "object"})["response_format"]["json_schema"]["schema"] == {"type": "object"}  # type: ignore[index]
    with pytest.raises(InvalidRequest, match="structural_tag"):
        body(structural_tag="x")
    with pytest.raises(InvalidRequest, match="prompt_logprobs"):
        engine.planned(GenerateRequest("chat", {"messages": [], "prompt_logprobs": 1}))


def test_tensorrt_llm_is_told_batch_context_and_share() -> None:
    found = tensorrt_llm.served(spec(70, thoughts="deepseek_r1"), H100S, OPTIONS)
    given = flags(found.argv)

    assert found.argv[:3] == ("/opt/engine", "serve", "/copies/m1/checkpoint")
    assert (given["--tp_size"], given["--max_seq_len"]) == ("4", "8192")
    assert given["--max_batch_size"] == str(found.slots)
    assert given["--reasoning_parser"] == "deepseek-r1"
    with pytest.raises(InvalidRequest, match="tools"):
        TensorRTLLM(OPTIONS, H100S, request_timeout_s=1).planned(GenerateRequest("chat", {"tools": [{}]}))


@pytest.mark.parametrize("derive", [sglang.served, tensorrt_llm.served])
def test_an_engine_for_gpus_says_that_there_is_none(derive) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EngineMissing, match="GPU"):
        derive(spec(8), CPU, OPTIONS)


def test_gpus_are_read_from_the_drivers() -> None:
    text = "0, NVIDIA H200, 143771, 9.0\n1, NVIDIA H200, 143771, 9.0\nNo devices were found\n"

    assert [(gpu.index, gpu.name, gpu.compute) for gpu in read_nvidia(text)] == [
        (0, "NVIDIA H200", 9.0),
        (1, "NVIDIA H200", 9.0),
    ]
    assert read_nvidia(text)[0].memory_bytes == 143771 << 20


def test_amd_s_driver_lists_processors_too_which_are_no_gpus(tmp_path: Path) -> None:
    for node, simd in (("0", 0), ("1", 1216)):
        (tmp_path / node / "mem_banks" / "0").mkdir(parents=True)
        (tmp_path / node / "properties").write_text(f"cpu_cores_count 1\nsimd_count {simd}\n")
        (tmp_path / node / "name").write_text("gfx942\n")
        (tmp_path / node / "mem_banks" / "0" / "properties").write_text("heap_type 1\nsize_in_bytes 206141652992\n")

    assert amd_gpus(tmp_path) == (Gpu(0, "gfx942", 206141652992, "amd"),)


@pytest.mark.parametrize(
    ("model_type", "template", "tools", "thoughts"),
    [
        ("qwen2", "{% if tools %}<tool_call>", "hermes", None),
        ("qwen3", "{% if tools %}<tool_call> <think>", "hermes", "qwen3"),
        ("mistral", "{% if tools %}[TOOL_CALLS]", "mistral", None),
        ("llama", '{% if tools %}<|python_tag|>"parameters": dictionary', "llama3_json", None),
        ("deepseek_v3", "{% if tools %}<｜tool▁calls▁begin｜></think>", "deepseek_v3", "deepseek_r1"),
        ("llama", "{{ messages }}<tool_call>", None, None),
        ("gpt_oss", "{{ messages }}", "openai", "openai_gptoss"),
        ("llama", None, None, None),
    ],
)
def test_how_calls_and_thoughts_are_written_is_read_off_the_chat_template(
    model_type: str, template: str | None, tools: str | None, thoughts: str | None
) -> None:
    assert (tool_style(model_type, template), thought_style(model_type, template)) == (tools, thoughts)


LOG = """(APIServer pid=1) INFO 11-25 [core.py:134] Initializing a V1 LLM engine (v0.32.0) with config: x
INFO [gpu_model_runner.py:5040] Starting to load model /copies/m1/checkpoint...
(Worker_TP0) INFO Loading weights took 3.25 seconds
(Worker_TP1) INFO Loading weights took 3.75 seconds
INFO torch.compile took 11.20 s in total
INFO GPU KV cache size: 503,216 tokens, Maximum concurrency for 8,192 tokens per request: 61.4x
INFO Graph capturing finished in 9 secs, took 1.21 GiB
"""


def test_the_stages_of_a_start_are_read_off_the_log() -> None:
    lines = LOG.splitlines()

    assert [stage("\n".join(lines[:count])) for count in range(len(lines) + 1)] == [
        None,
        "process started",
        "loading weights",
        "weights loaded",
        "weights loaded",
        "weights loaded",
        "cache allocated",
        "graphs captured",
    ]
    bar = "Loading safetensors checkpoint shards:  67% Completed | 2/3 [00:01<00:00,  1.40it/s]"
    assert stage("\n".join([*lines[:2], bar])) == "loading weights, 2 of 3 files"
    assert stage_seconds(LOG) == {"weights_s": 3.75, "compile_s": 11.2, "graphs_s": 9.0}
    assert kv_tokens(LOG) == 503216
