"""Tables that firmware finds through fw_cfg: E820, ACPI, SMBIOS, boot order.

Everything here is a pure function of a description: bytes come out, nothing is
read from the machine. The modules know no device and no KVM.
"""
