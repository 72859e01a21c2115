/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/virtio_pci.h"

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <string.h>

#define COMMAND_BUS_MASTER (1u << 2)
#define COMMAND_INTX_DISABLE (1u << 10)

#define ISR_QUEUE 1u
#define ISR_CONFIG 2u

#define STATUS_BITS                                                                                              \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FEATURES_OK | \
     VIRTIO_CONFIG_S_FAILED)

static void update_line(struct virtio_pci *device)
{
    bool level = device->isr != 0 && !device->intx_disabled && !device->msix.enabled;

    if (level != device->line) {
        device->line = level;
        pci_pirq_set(device->pirqs, device->pirq, device->slot, level);
    }
}

static void rewire(struct virtio_pci *device)
{
    if (device->class->rewired != NULL) {
        device->class->rewired(device->opaque);
    }
}

static void interrupt(struct virtio_pci *device, uint16_t vector, uint8_t cause)
{
    device->isr |= cause;
    if (device->msix.enabled) {
        msix_raise(&device->msix, vector);
    } else {
        update_line(device);
    }
}

void virtio_pci_interrupt(struct virtio_pci *device, uint32_t queue)
{
    interrupt(device, device->queues[queue].vector, ISR_QUEUE);
}

void virtio_pci_break(struct virtio_pci *device)
{
    if (device->status & VIRTIO_CONFIG_S_NEEDS_RESET) {
        return;
    }
    device->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    rewire(device);
    if (device->status & VIRTIO_CONFIG_S_DRIVER_OK) {
        interrupt(device, device->config_vector, ISR_CONFIG);
    }
}

bool virtio_pci_may_serve(const struct virtio_pci *device, uint32_t queue)
{
    return device->status & VIRTIO_CONFIG_S_DRIVER_OK && !(device->status & VIRTIO_CONFIG_S_NEEDS_RESET) &&
           device->bus_master && device->queues[queue].enabled;
}

bool virtio_pci_negotiated(const struct virtio_pci *device, uint32_t feature)
{
    return device->negotiated >> feature & 1;
}

struct virtq_features virtio_pci_ring_features(const struct virtio_pci *device)
{
    return (struct virtq_features){
        .indirect = virtio_pci_negotiated(device, VIRTIO_RING_F_INDIRECT_DESC),
        .event_index = virtio_pci_negotiated(device, VIRTIO_RING_F_EVENT_IDX),
    };
}

/* What a driver's reset resets: MSI-X's table and the configuration space are the function's. */
static void reset_device(struct virtio_pci *device)
{
    device->negotiated = 0;
    device->offered_select = 0;
    device->negotiated_select = 0;
    device->status = 0;
    device->isr = 0;
    device->config_vector = VIRTIO_MSI_NO_VECTOR;
    device->queue_select = 0;
    for (uint32_t i = 0; i < device->queue_count; i++) {
        device->queues[i] = (struct virtqueue){.size = VIRTQ_SIZE, .vector = VIRTIO_MSI_NO_VECTOR};
    }
    update_line(device);
    rewire(device);
    device->class->reset(device->opaque);
}

void virtio_pci_reset(struct virtio_pci *device)
{
    msix_reset(&device->msix);
    reset_device(device);
}

void virtio_pci_set_command(struct virtio_pci *device, uint16_t command)
{
    bool was_master = device->bus_master;

    device->bus_master = command & COMMAND_BUS_MASTER;
    device->intx_disabled = command & COMMAND_INTX_DISABLE;
    update_line(device);
    rewire(device);
    if (device->bus_master && !was_master) {
        device->class->notified(device->opaque);
    }
}

void virtio_pci_set_msix_control(struct virtio_pci *device, uint16_t control)
{
    msix_set_control(&device->msix, control);
    update_line(device);
    rewire(device);
}

void virtio_pci_update(struct virtio_pci *device)
{
    update_line(device);
    device->class->notified(device->opaque);
}

static struct virtio_pci_common_cfg common_registers(const struct virtio_pci *device)
{
    struct virtio_pci_common_cfg registers = {
        .device_feature_select = device->offered_select,
        .device_feature = device->offered_select < 2 ? (uint32_t)(device->offered >> 32 * device->offered_select) : 0,
        .guest_feature_select = device->negotiated_select,
        .guest_feature =
            device->negotiated_select < 2 ? (uint32_t)(device->negotiated >> 32 * device->negotiated_select) : 0,
        .msix_config = device->config_vector,
        .num_queues = device->queue_count,
        .device_status = device->status == 0 && device->stopping ? VIRTIO_CONFIG_S_ACKNOWLEDGE : device->status,
        .config_generation = device->generation,
        .queue_select = device->queue_select,
    };

    if (device->queue_select < device->queue_count) {
        const struct virtqueue *queue = &device->queues[device->queue_select];

        registers.queue_size = queue->size;
        registers.queue_msix_vector = queue->vector;
        registers.queue_enable = queue->enabled;
        registers.queue_notify_off = device->queue_select;
        registers.queue_desc_lo = (uint32_t)queue->descriptors;
        registers.queue_desc_hi = (uint32_t)(queue->descriptors >> 32);
        registers.queue_avail_lo = (uint32_t)queue->available;
        registers.queue_avail_hi = (uint32_t)(queue->available >> 32);
        registers.queue_used_lo = (uint32_t)queue->used;
        registers.queue_used_hi = (uint32_t)(queue->used >> 32);
    }
    return registers;
}

static void write_status(struct virtio_pci *device, uint8_t value)
{
    uint8_t before = device->status;
    uint64_t wrong = device->negotiated & ~device->offered;

    if (value == 0) {
        reset_device(device);
        return;
    }
    /* The driver cannot take a bit back (2.1.1), and what it chose must be possible (3.1.1, step 5). */
    value |= before;
    if (!(before & VIRTIO_CONFIG_S_FEATURES_OK) && (wrong != 0 || !virtio_pci_negotiated(device, VIRTIO_F_VERSION_1))) {
        value &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
    }
    if (!(value & VIRTIO_CONFIG_S_FEATURES_OK)) {
        value &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
    }
    device->status = (uint8_t)((value & STATUS_BITS) | (before & VIRTIO_CONFIG_S_NEEDS_RESET));
    if (device->status & ~before & VIRTIO_CONFIG_S_DRIVER_OK) {
        device->class->notified(device->opaque);
    }
}

static uint16_t known_vector(const struct virtio_pci *device, uint16_t vector)
{
    return vector < device->msix.vectors ? vector : VIRTIO_MSI_NO_VECTOR;
}

static void write_queue(struct virtio_pci *device, const struct virtio_pci_common_cfg *registers, bool enable)
{
    struct virtqueue *queue = &device->queues[device->queue_select];

    queue->vector = known_vector(device, registers->queue_msix_vector);
    if (queue->enabled) {
        return; /* the rest cannot change any more (4.1.4.3.2) */
    }
    queue->size = registers->queue_size;
    queue->descriptors = (uint64_t)registers->queue_desc_hi << 32 | registers->queue_desc_lo;
    queue->available = (uint64_t)registers->queue_avail_hi << 32 | registers->queue_avail_lo;
    queue->used = (uint64_t)registers->queue_used_hi << 32 | registers->queue_used_lo;
    if (!enable || registers->queue_enable != 1) {
        return;
    }
    if (virtqueue_is_sane(queue, device->memory)) {
        queue->enabled = true;
        device->class->notified(device->opaque);
    } else {
        virtio_pci_break(device);
    }
}

/* Of any width: the bytes that were written take their places, and then each register that has some of them acts. */
static void write_common(struct virtio_pci *device, uint64_t at, const uint8_t *data, uint64_t size)
{
    struct virtio_pci_common_cfg registers = common_registers(device);
    uint64_t end = at + size;

#define TOUCHES(field) \
    (at < offsetof(struct virtio_pci_common_cfg, field) + sizeof(registers.field) && \
     end > offsetof(struct virtio_pci_common_cfg, field))
    memcpy((uint8_t *)&registers + at, data, size);
    device->offered_select = registers.device_feature_select;
    device->negotiated_select = registers.guest_feature_select;
    if (TOUCHES(guest_feature) && device->negotiated_select < 2 && !(device->status & VIRTIO_CONFIG_S_FEATURES_OK)) {
        uint32_t shift = 32 * device->negotiated_select;

        device->negotiated &= ~((uint64_t)UINT32_MAX << shift);
        device->negotiated |= (uint64_t)registers.guest_feature << shift;
    }
    device->config_vector = known_vector(device, registers.msix_config);
    if (end > offsetof(struct virtio_pci_common_cfg, queue_size) && device->queue_select < device->queue_count) {
        write_queue(device, &registers, TOUCHES(queue_enable));
    }
    device->queue_select = registers.queue_select;
    if (TOUCHES(device_status)) {
        write_status(device, registers.device_status);
    }
#undef TOUCHES
}

static void access_common(struct virtio_pci *device, uint64_t at, struct io_access *access)
{
    struct virtio_pci_common_cfg registers;
    uint64_t size;

    if (at >= sizeof(registers)) {
        return;
    }
    size = access->size < sizeof(registers) - at ? access->size : sizeof(registers) - at;
    if (access->is_write) {
        write_common(device, at, access->data, size);
        rewire(device);
    } else {
        registers = common_registers(device);
        memcpy(access->data, (const uint8_t *)&registers + at, size);
    }
}

static void access_isr(struct virtio_pci *device, uint64_t at, struct io_access *access)
{
    if (at == 0 && !access->is_write) {
        access->data[0] = device->isr;
        device->isr = 0;
        update_line(device);
    }
}

static void access_config(struct virtio_pci *device, uint64_t at, struct io_access *access)
{
    uint64_t size;

    if (at >= device->config_size) {
        return;
    }
    size = access->size < device->config_size - at ? access->size : device->config_size - at;
    if (access->is_write) {
        device->class->config_written(device->opaque, (uint32_t)at, (uint32_t)size, access->data);
    } else {
        memcpy(access->data, device->config + at, size);
    }
}

void virtio_pci_access(void *opaque, struct io_access *access)
{
    struct virtio_pci *device = opaque;

    if (!access->is_write) {
        memset(access->data, 0, access->size);
    }
    if (access->offset >= VIRTIO_BAR_NOTIFY) {
        if (access->is_write) {
            device->class->notified(device->opaque);
        }
    } else if (access->offset >= VIRTIO_BAR_DEVICE) {
        access_config(device, access->offset - VIRTIO_BAR_DEVICE, access);
    } else if (access->offset >= VIRTIO_BAR_ISR) {
        access_isr(device, access->offset - VIRTIO_BAR_ISR, access);
    } else {
        access_common(device, access->offset, access);
    }
}

void virtio_pci_msix_access(void *opaque, struct io_access *access)
{
    struct virtio_pci *device = opaque;

    msix_access(&device->msix, access);
    if (access->is_write) {
        rewire(device);
    }
}

static void access_window(const struct virtio_pci_window *window, bool is_write)
{
    struct virtio_pci_cfg_cap capability;
    struct io_access access = {.count = 1, .is_write = is_write};

    memcpy(&capability, window->config + window->capability, sizeof(capability));
    access.offset = capability.cap.offset;
    access.size = capability.cap.length;
    access.data = window->config + window->capability + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data);
    if (capability.cap.bar == VIRTIO_REGISTERS_BAR && (access.size == 1 || access.size == 2 || access.size == 4) &&
        access.offset % access.size == 0 && access.offset < VIRTIO_BAR_SIZE) {
        virtio_pci_access(window->device, &access);
    }
}

static void fill_window(void *opaque)
{
    access_window(opaque, false);
}

void virtio_pci_window_init(struct virtio_pci_window *window)
{
    window->view.first = window->capability + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data);
    window->view.last = window->view.first + 3;
    window->view.fill = fill_window;
    window->view.opaque = window;
}

void virtio_pci_window_store(struct virtio_pci_window *window)
{
    access_window(window, true);
}
