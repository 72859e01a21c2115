"""Signatures in full, for help() and `inspect`; editors and mypy see them anyway."""

from __future__ import annotations

from vmm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from inspect import Signature
    from typing import Any


class SpelledOut:
    """A function with its `MachineOptions` spelled out when somebody asks for its signature.

    To be its ``__wrapped__``. Loading `inspect` takes longer than making a machine.

    Args:
        function: has them as ``**options``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *values: Any, **options: Any) -> Any:
        """As the function."""
        return self._function(*values, **options)

    @property
    def __signature__(self) -> Signature:
        from inspect import Parameter, signature

        from vmm.config.keywords import MachineOptions

        own = signature(self._function, follow_wrapped=False)
        parameters = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        for name, hint in MachineOptions.__annotations__.items():
            text = getattr(hint, "__forward_arg__", hint)
            parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=text))
        return own.replace(parameters=parameters)
