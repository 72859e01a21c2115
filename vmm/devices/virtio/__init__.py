"""Virtio devices: PCI functions as virtio 1.2 defines them, whose registers, queues and requests are C's."""
