"""Make transformers' Auto classes know pruned models, once both packages are imported.

Registering needs the classes themselves, hence torch and transformers' model code: seconds.
`import lmscout` must not cost that (the command line's help would), so registration waits
for transformers.  It happens right after the package `transformers` itself has been imported
and not later, at its Auto classes, because those are also imported from the middle of other
modules (`transformers.modeling_layers`, say), where importing model code would fail halfway.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # at run time, importing the abstract classes would take most of the time
    from collections.abc import Sequence
    from importlib.abc import Loader


def register_when_imported() -> None:
    """Register now if transformers is imported, else as soon as it is."""
    if "transformers" in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTransformers())


def register() -> None:
    """Register pruned models with AutoConfig, AutoModel and AutoModelForCausalLM."""
    importlib.import_module("lmscout.pruning.saving.modeling_lmscout")  # does it as it is imported


class _AfterTransformers:
    """Lets the other finders find transformers, and registers once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers":
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = cast("Loader", _ThenRegister(spec.loader))
                    return spec
        return None


class _ThenRegister:
    """A loader that registers when it is done; in all else the one that it was made of."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        try:
            register()
        except Exception as error:  # whatever it is, `import transformers` has to work
            import warnings

            warnings.warn(
                f"lmscout could not register pruned models with transformers: {error!r}",
                RuntimeWarning,
                stacklevel=2,
            )
