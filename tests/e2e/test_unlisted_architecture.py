"""A checkpoint of an architecture that no row covers, imported on the word of an engine that was asked."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.support.checkpoints import copy_of, set_config
from tests.support.server import Server
from tests.unit.engines.test_supported import interpreter


def test_an_architecture_that_an_installed_engine_serves_is_imported_with_a_note(tmp_path: Path, tiny: Path) -> None:
    command = [sys.executable, "-m", "outcrop.bench.upstream", "--port", "{port}"]
    registry = "class ModelRegistry:\n    get_supported_archs = staticmethod(lambda: {'Olmo9ForCausalLM'})\n"
    settings = {
        "custom_engine": shlex.join(command),
        "custom_engine_models": '["*"]',
        "vllm_python": interpreter(tmp_path, registry),
    }
    folder = set_config(copy_of(tiny, tmp_path / "model"), model_type="olmo9", architectures=["Olmo9ForCausalLM"])
    server = Server(tmp_path / "home", **settings).start()
    try:
        server.import_model(folder, "olmo")
        refused = server.ended_job(server.create_job(server.put(tiny, "qwen"), "qwen"))
        told = server.admin("/outcrop/v1/models/olmo")
    finally:
        server.stop()

    assert (told["facts"]["engine"], told["architecture"]) == ("custom", "olmo9")
    assert any("because custom says that it serves it" in note for note in told["facts"]["notes"])
    assert refused["status"] == "Completed"  # kept: its family has engines, though none here
