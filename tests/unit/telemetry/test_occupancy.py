"""How full a copy is, read from the engines' own pages."""

from __future__ import annotations

from outcrop.engines.occupancy import Occupancy, from_prometheus, from_slots

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_requests_running{engine="1",model_name="m"} 1.0
"""
SGLANG = 'sglang:num_running_reqs{model_name="m"} 5.0\nsglang:num_queue_reqs{model_name="m"} 1.0\nsglang:token_usage{model_name="m"} 0.5\n'
SLOTS = b"""[{"id":0,"n_ctx":100,"is_processing":false},
 {"id":1,"n_ctx":100,"is_processing":true,"n_prompt_tokens":50,"params":{"seed":1},"next_token":[{"n_decoded":14}]}]"""


def test_slots_that_run_count_with_the_tokens_that_they_hold() -> None:
    assert from_slots(SLOTS) == Occupancy(1, 0, 0.25)
    assert from_slots(b'{"error":"no slots"}') is None
    assert from_slots(b"[]") == Occupancy(0, 0, None)


def test_the_pages_of_other_engines_are_read_by_their_own_names() -> None:
    assert from_prometheus(VLLM) == Occupancy(4, 2, 0.5)
    assert from_prometheus(SGLANG) == Occupancy(5, 1, 0.5)
    assert from_prometheus("llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n") == Occupancy(1, 2, None)
    assert from_prometheus("python_info 1\n") is None
