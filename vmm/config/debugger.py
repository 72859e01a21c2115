"""Where a debugger finds a machine: ``-gdb``."""

from typing import NamedTuple, Self

from vmm import options
from vmm.errors import ConfigError


class DebugAddress(NamedTuple):
    """Where a debugger finds the machine: a TCP port of ``host`` (0: any that is free), or a UNIX socket."""

    host: str = "127.0.0.1"
    port: int = 0
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read QEMU's ``tcp:[HOST]:PORT`` or ``unix:PATH``.

        Raises:
            ConfigError: it is neither.
        """
        kind, _, rest = text.partition(":")
        path, *unneeded = rest.split(",")
        if any(word not in {"server", "server=on", "nowait", "wait=off", "nodelay"} for word in unneeded):
            raise ConfigError(f"-gdb {text}: the forms are tcp:[HOST]:PORT and unix:PATH")
        if kind == "unix" and path:
            return cls(path=path)
        host, separator, port = path.rpartition(":")
        if kind != "tcp" or not separator:
            raise ConfigError(f"-gdb {text}: the forms are tcp:[HOST]:PORT and unix:PATH")
        number = options.parse_int(port, f"-gdb {text}: port")
        if not 0 <= number <= 0xFFFF:
            raise ConfigError(f"-gdb {text}: a port is from 0 to 65535")
        return cls(host.strip("[]") or "127.0.0.1", number)

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
