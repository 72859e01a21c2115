"""What firmware was handed by fw_cfg or fwctl, and what the guest did with it."""

from __future__ import annotations

from typing import TypedDict


class ItemReport(TypedDict):
    """An item of fw_cfg, and what the guest did with it."""

    name: str
    key: int
    size: int
    selects: int
    reads: int
    """Port accesses and DMA transfers that delivered bytes of it; a string instruction's batch is one."""
    bytes_read: int
    writes: int
    read_to_end: bool
    """Whether its last byte was delivered."""


class FwCfgReport(TypedDict):
    """QEMU's fw_cfg."""

    items: list[ItemReport]
    """By key."""
    never_read: list[str]
    """Names of items that were never selected."""
    probes: int
    """How often the signature was asked for."""


class RequestReport(TypedDict):
    """A request to fwctl, and its answer."""

    t_s: float
    operation: str
    txid: int
    oid: str
    """As the guest spelled it."""
    error: str
    """OK, or bhyve's name of the error."""
    matched: str | None
    """The OID that was answered; null: none."""
    value: str
    """In hexadecimal."""


class FwctlReport(TypedDict):
    """bhyve's fwctl."""

    requests: list[RequestReport]
    """The last ones, if there were many."""
    count: int
    """Of all requests."""
    probes: int
    """How often the signature was read."""
    oids: list[str]
    """Offered."""
    never_asked: list[str]
    """Of those."""
