/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/vhost_user.h"

#include <linux/kvm.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void signal_event(int fd)
{
    const uint64_t one = 1;

    /* It cannot fail but for a counter at its end, and then there is a wake-up on its way already. */
    (void)!write(fd, &one, sizeof(one));
}

bool vhost_user_wanted(const struct vhost_user *device)
{
    const struct virtio_pci *pci = &device->pci;

    return pci->bus_master && (pci->status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET)) ==
                                  VIRTIO_CONFIG_S_DRIVER_OK;
}

static void notified(void *opaque)
{
    struct vhost_user *device = opaque;

    if (!vhost_user_wanted(device)) {
        return;
    }
    /* Which queue the guest meant does not matter: who serves one looks for itself whether there is something. */
    for (uint32_t i = 0; i < device->pci.queue_count; i++) {
        if (device->pci.queues[i].enabled) {
            signal_event(device->kick_fds[i]);
        }
    }
    if (!device->served) {
        signal_event(device->wake_fd);
    }
}

static void reset(void *opaque)
{
    struct vhost_user *device = opaque;

    device->resets++;
    device->pci.stopping |= device->served;
    device->served = false;
    signal_event(device->wake_fd);
}

void vhost_user_stopped(struct vhost_user *device, uint64_t resets)
{
    if (device->resets == resets) {
        device->pci.stopping = false;
    }
}

bool vhost_user_message(const struct vhost_user *device, uint32_t queue, uint64_t *address, uint32_t *data)
{
    const struct virtqueue *its = &device->pci.queues[queue];

    return vhost_user_wanted(device) && its->enabled && msix_message(&device->pci.msix, its->vector, address, data);
}

/* Once it returns, KVM sends no more of it. */
static void disconnect(struct vhost_user *device, uint32_t queue)
{
    struct kvm_irqfd end = {
        .fd = (uint32_t)device->call_fds[queue],
        .gsi = device->wires[queue].gsi,
        .flags = KVM_IRQFD_FLAG_DEASSIGN,
    };

    (void)ioctl(device->vm_fd, KVM_IRQFD, &end);
    device->wires[queue].connected = false;
}

static void rewired(void *opaque)
{
    struct vhost_user *device = opaque;
    bool can_connect = false;

    for (uint32_t i = 0; i < device->pci.queue_count; i++) {
        const struct vhost_user_wire *wire = &device->wires[i];
        uint64_t address;
        uint32_t data;
        bool open = vhost_user_message(device, i, &address, &data);

        if (wire->connected && !(open && address == wire->address && data == wire->data)) {
            disconnect(device, i);
        }
        can_connect |= open && !wire->connected;
    }
    if (can_connect) {
        signal_event(device->wake_fd);
    }
}

static void config_written(void *opaque, uint32_t first, uint32_t length, const uint8_t *data)
{
    /* Nothing that the features offered allow to be written. */
    (void)opaque, (void)first, (void)length, (void)data;
}

static const struct virtio_class vhost_user_class = {
    .notified = notified,
    .reset = reset,
    .config_written = config_written,
    .rewired = rewired,
};

struct vhost_user *vhost_user_new(const struct guest_memory *memory, struct pci_pirqs *pirqs, int vm, uint16_t queues)
{
    struct vhost_user *device = calloc(1, sizeof(*device));
    bool failed;

    if (device == NULL) {
        return NULL;
    }
    device->vm_fd = vm;
    device->pci.memory = memory;
    device->pci.class = &vhost_user_class;
    device->pci.opaque = device;
    device->pci.pirqs = pirqs;
    device->pci.queue_count = queues;
    device->pci.msix.sink = pirqs->sink;
    device->pci.msix.vectors = queues + 1u; /* configuration changes, and each queue */
    device->wake_fd = eventfd(0, EFD_CLOEXEC);
    failed = device->wake_fd < 0;
    for (uint32_t i = 0; i < queues; i++) {
        device->kick_fds[i] = eventfd(0, EFD_CLOEXEC);
        device->call_fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        failed |= device->kick_fds[i] < 0 || device->call_fds[i] < 0;
    }
    if (failed) {
        vhost_user_free(device);
        return NULL;
    }
    return device;
}

static void close_if_open(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

void vhost_user_free(struct vhost_user *device)
{
    close_if_open(device->wake_fd);
    for (uint32_t i = 0; i < device->pci.queue_count; i++) {
        close_if_open(device->kick_fds[i]);
        close_if_open(device->call_fds[i]);
    }
    free(device);
}
