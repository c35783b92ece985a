"""Renders a test conversation with a checkpoint's chat template: a child process, since the template is foreign code.

Jinja's sandbox keeps a template from Python's insides; limits on processor time and memory end one that never would.
The environment is the one that transformers gives templates (``apply_chat_template``).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

CPU_S, MEMORY_BYTES, DEADLINE_S = 3, 1 << 30, 20.0
# (template, tokens such as bos_token by name) -> (why the template cannot be used, a warning)
Render = Callable[[str, Mapping[str, str]], Awaitable[tuple[str | None, str | None]]]
ASKED = "What is the capital of France?"


@asynccontextmanager
async def chat_probe() -> AsyncIterator[Render]:
    """A process that is ready to render by the time a template is known; it ends with the context."""
    from outcrop.launchers.local import inherited  # the child itself does without

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "outcrop.importing.chat_probe"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=inherited(),
    )

    async def render(template: str, tokens: Mapping[str, str]) -> tuple[str | None, str | None]:
        try:
            async with asyncio.timeout(DEADLINE_S):
                out, _ = await process.communicate(json.dumps({"template": template, "tokens": dict(tokens)}).encode())
        except TimeoutError:
            return f"it did not end within {DEADLINE_S:g} s", None
        if process.returncode != 0:
            return f"it took more than {CPU_S} s of processor time or {MEMORY_BYTES >> 20} MiB", None
        found = json.loads(out)
        return found["problem"], found["warning"]

    try:
        yield render
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def main() -> int:
    import resource

    environment = _environment()  # while the template is still on its way
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    task = json.load(sys.stdin)
    problem, warning = _tried(environment, task["template"], task["tokens"])
    sys.stdout.write(json.dumps({"problem": problem, "warning": warning}))
    sys.stdout.flush()
    return 0


def _tried(environment: Any, source: str, tokens: Mapping[str, str]) -> tuple[str | None, str | None]:
    import jinja2

    turns = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    try:
        template = environment.from_string(source)
        text = template.render(messages=turns, add_generation_prompt=True, **tokens)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as exc:
        line = getattr(exc, "lineno", None)
        return f"{exc}{f' (line {line})' if line else ''}", None
    if ASKED not in text:
        # Templates for messages of parts print nothing for plain text; transformers then passes parts.
        parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        if ASKED not in template.render(messages=parts, add_generation_prompt=True, **tokens):
            return "its output does not hold the user's message", None
    system = [{"role": "system", "content": "Be brief."}, *turns]
    try:
        if "Be brief." not in template.render(messages=system, add_generation_prompt=True, **tokens):
            return None, "the chat template leaves system messages out"
    except jinja2.TemplateError as exc:
        return None, f"the chat template refuses system messages ({exc})"
    return None, None


def _environment() -> Any:
    from datetime import UTC, datetime

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what a model wrote, for training; here it is what it holds."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own shape)

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    return environment


if __name__ == "__main__":
    sys.exit(main())
