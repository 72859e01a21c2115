"""UEFI device paths, as firmware writes them, that say where in vmm a thing comes from."""

KERNEL_IMAGE = "VenMedia(1428F772-B64A-441E-B8C3-9EBDD7F893C7)/kernel"
"""OVMF's of -kernel (OvmfPkg/Include/Guid/QemuKernelLoaderFsMedia.h)."""
