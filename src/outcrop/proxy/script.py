"""Finding a customer's script in a bundle, importing it, and telling by what it defines how it wants to be run."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from outcrop.proxy.dialects import classes, djl, functions, toolkit
from outcrop.proxy.dialects.base import Dialect, Settings
from outcrop.proxy.failures import HandlerFailed, ScriptRefused
from outcrop.proxy.steps import Steps, takes

# Where a bundle keeps its script, first match: the toolkits' own places, then ours, DJL's and Truss's.
PLACES = ("code/inference.py", "inference.py", "code/model.py", "model.py", "model/model.py")
DIALECTS: Mapping[str, Callable[..., Dialect]] = {
    "sagemaker": toolkit.Toolkit,
    "huggingface": toolkit.HuggingFace,
    "djl": djl.Djl,
    "mms": djl.MultiModelServer,
    "class": classes.HandlerClass,
    "outcrop": functions.Functions,
}
_REFUSED = {
    "TritonPythonModel": "a Triton Python backend: it works on tensors (execute(requests)), which a proxy has none of",
    "MLModel": "an MLServer runtime: it works on V2 tensors, which a proxy has none of",
}
_STANDARDS = ("custom_ping_handler", "custom_invocation_handler", "custom_sagemaker_invocation_handler")


def find(model_dir: Path, program: str = "") -> Path | None:
    """The script of a bundle, *program* if that is set. Raises ScriptRefused when *program* does not exist."""
    if program:
        name = program if program.endswith(".py") else f"{program}.py"
        for place in (model_dir / "code" / name, model_dir / name):
            if place.is_file():
                return place
        raise ScriptRefused(f"SAGEMAKER_PROGRAM={program}: there is no {name} in {model_dir}/code or {model_dir}.")
    return next((model_dir / place for place in PLACES if (model_dir / place).is_file()), None)


def load(path: Path, model_dir: Path) -> ModuleType:
    """The script as a module, with its folder and the bundle's on the path. Raises ScriptRefused."""
    for folder in (model_dir, model_dir / "code", path.parent):
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    djl.offer_djl_python()
    classes.offer_kserve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as exc:
        failed = HandlerFailed("import", exc, model_dir, input_is_at_fault=False)
        raise ScriptRefused(f"{path.name} does not load: {failed}") from exc
    return module


def dialect_of(module: ModuleType, own_file: Path) -> str:
    """Which of ``DIALECTS`` the names that *module* defines belong to. Raises ScriptRefused.

    First match: SageMaker's functions, ``handle`` with one parameter (DJL) or two (Multi Model Server), our own
    functions, a class with preprocess, postprocess or predict.
    """
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    for name, value in own.items():
        if not inspect.isclass(value):
            continue
        for base in value.__mro__:
            if base.__name__ in _REFUSED and value.__module__ == module.__name__:
                raise ScriptRefused(f"{own_file.name} defines {name}, {_REFUSED[base.__name__]}. Write {_OURS}.")
    if any(callable(own.get(name)) for name in toolkit.NAMES):
        return "sagemaker"
    if any(name in own for name in _STANDARDS):
        raise ScriptRefused(
            f"{own_file.name} uses model-hosting-container-standards, whose handlers take FastAPI requests inside an "
            f"inference server. Write {_OURS}."
        )
    handle = own.get("handle")
    if inspect.isfunction(handle):
        return "djl" if takes(handle, 2) == 1 else "mms"
    if any(callable(own.get(name)) for name in functions.NAMES):
        return "outcrop"
    if classes.handler_class(module) is not None:
        return "class"
    raise ScriptRefused(
        f"{own_file.name} defines none of the interfaces that a proxy runs: {', '.join(sorted(toolkit.NAMES))} "
        f"(SageMaker, Hugging Face), handle (DJL, Multi Model Server), a class with preprocess, postprocess or predict "
        f"(KServe, Truss, TorchServe), or {_OURS}."
    )


_OURS = "the functions preprocess(request, ctx), predict, postprocess, postprocess_stream (outcrop proxy init)"


def opened(settings: Settings, steps: Steps) -> Dialect:
    """The dialect of the bundle, with its script imported; one without a script forwards as it is."""
    path = find(settings.model_dir, settings.program)
    if path is None:
        if settings.dialect not in ("auto", "none"):
            raise ScriptRefused(
                f"There is no script in {settings.model_dir} (looked for {', '.join(PLACES)}), "
                f"but its dialect is set to {settings.dialect}."
            )
        return functions.Functions(ModuleType("none"), settings, steps)
    module = load(path, settings.model_dir)
    if settings.dialect == "auto":
        name = dialect_of(module, path)
        if name == "sagemaker" and settings.is_hugging_face:
            name = "huggingface"
    else:
        name = settings.dialect
    return DIALECTS[name](module, settings, steps)
