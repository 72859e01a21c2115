"""What a start needs of `typing` while it runs, without loading it.

Most of a short run is loading modules. `typing` takes 12 of a start's 200 million instructions to load, and each of its
named tuples, of which a start defines some forty, 0.7 million, because code is compiled for it. Those of here take a
sixth. A type checker sees those of `typing`, whose other names modules import for it alone.
"""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple  # noqa: PLC0414  # says that it is for others
else:

    class _NamedTupleType(type):
        """Makes fields of what a class annotates, and their defaults of the values that are given there."""

        def __new__(cls, name, bases, namespace):
            fields = tuple(namespace.get("__annotations__", ()))
            namespace.setdefault("__slots__", ())
            if fields:
                namespace |= {
                    "_fields": fields,
                    "_field_defaults": {field: namespace[field] for field in fields if field in namespace},
                    "__match_args__": fields,
                    **{field: property(itemgetter(index)) for index, field in enumerate(fields)},
                }
            return super().__new__(cls, name, bases, namespace)

        @property
        def __signature__(cls):
            from inspect import Parameter, Signature

            defaults = cls._field_defaults
            kind = Parameter.POSITIONAL_OR_KEYWORD
            return Signature([Parameter(f, kind, default=defaults.get(f, Parameter.empty)) for f in cls._fields])

    class NamedTuple(tuple, metaclass=_NamedTupleType):
        """What `typing.NamedTuple` is; annotations have to be texts, which ``from __future__`` sees to."""

        _fields = ()
        _field_defaults = {}  # noqa: RUF012  # never changed

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                values = cls._completed(values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _completed(cls, values, named):
            rest = cls._fields[len(values) :]
            given = cls._field_defaults | named
            wrong = named.keys() - set(rest)
            missing = [field for field in rest if field not in given]
            if wrong or missing or len(values) > len(cls._fields):
                what = f"unknown or given twice: {sorted(wrong)}" if wrong else f"missing: {missing}"
                raise TypeError(f"{cls.__name__}() takes {', '.join(cls._fields)}; {what}")
            return values + tuple([given[field] for field in rest])

        @classmethod
        def _make(cls, iterable):
            self = tuple.__new__(cls, iterable)
            if len(self) != len(cls._fields):
                raise TypeError(f"{cls.__name__} has {len(cls._fields)} fields, not {len(self)}")
            return self

        def _replace(self, **named):
            replaced = self._make([named.pop(field, value) for field, value in zip(self._fields, self, strict=True)])
            if named:
                raise TypeError(f"{type(self).__name__} has no fields {sorted(named)}")
            return replaced

        __replace__ = _replace  # copy.replace, since Python 3.13

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self) -> str:
            fields = ", ".join(f"{field}={value!r}" for field, value in self._asdict().items())
            return f"{type(self).__name__}({fields})"
