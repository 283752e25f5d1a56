"""Finds the workflow that `MODULE:APP` names."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from pathlib import Path

from ag06.errors import ConfigurationError
from ag06.runtime.workflow import Workflow

_PACKAGE = str(Path(__file__).parents[1])
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def load_workflow(target: str) -> Workflow:
    """Import `module:name` from the working directory or the environment, and return the `Workflow` it names.

    `module` alone is enough where the module holds one workflow. Raises `ConfigurationError` that says what is wrong,
    with the place in the user's code where an import fails.
    """
    module_name, _, attribute = target.partition(":")
    if not _DOTTED.fullmatch(module_name) or module_name.endswith(".py"):
        raise ConfigurationError(f"{target!r} is not MODULE:APP, such as shop.workflow:app (no path, no .py)")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"no module {module_name!r} in {here} or in the environment") from None
        raise ConfigurationError(f"{module_name} imports {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"importing {module_name} failed at {_what(error, here)}") from error
    if not attribute:
        return _only_workflow(module_name, vars(module))
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Workflow):
        known = f"known: {_names(vars(module)) or 'no workflow at all'}"
        if found is None:
            raise ConfigurationError(f"{target!r}: module {module_name} has no name {attribute!r}; {known}")
        raise ConfigurationError(f"{target!r}: {attribute} is a {type(found).__name__}, not a Workflow; {known}")
    return found


def _what(error: BaseException, here: str) -> str:
    """Return place, kind and message of an error; the place is in the user's code, not in what that called."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if _is_own(frame.filename, here)), frames[-1])
    return f"{where.filename}:{where.lineno}: {type(error).__name__}: {error}"


def _is_own(filename: str, here: str) -> bool:
    return filename.startswith(here) and not filename.startswith(_PACKAGE) and "site-packages" not in filename


def _only_workflow(module_name: str, names: dict[str, object]) -> Workflow:
    found = {id(value): value for value in names.values() if isinstance(value, Workflow)}
    if len(found) != 1:
        raise ConfigurationError(
            f"{module_name} holds {len(found)} workflows ({_names(names)}); say which one: {module_name}:NAME"
        )
    return next(iter(found.values()))


def _names(names: dict[str, object]) -> str:
    return ", ".join(name for name, value in names.items() if isinstance(value, Workflow))
