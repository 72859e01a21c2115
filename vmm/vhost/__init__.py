"""vhost-user: virtio devices that another process serves, in the memory of the machine."""
