/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/pci_config.h"

#include <stddef.h>
#include <string.h>

/* Ports, counted from 0xcf8. */
#define CONFIG_ADDRESS 0
#define RESET_CONTROL 1
#define CONFIG_DATA 4

#define ADDRESS_ENABLE (1u << 31)
#define ADDRESS_FUNCTION 0x00ffff00u /* bus, device, function */
#define ADDRESS_REGISTER 0x000000fcu
#define ECAM_REGISTER 0xfffu
#define ECAM_FUNCTION_SHIFT 12

static void read_nobody(struct io_access *access)
{
    if (!access->is_write) {
        memset(access->data, 0xff, (size_t)access->size * access->count);
    }
}

static void read_config(const uint8_t *config, uint32_t at, struct io_access *access)
{
    uint32_t bytes;

    read_nobody(access);
    if (at >= PCI_CONFIG_SIZE) {
        return;
    }
    bytes = access->size < PCI_CONFIG_SIZE - at ? access->size : PCI_CONFIG_SIZE - at;
    for (uint32_t element = 0; element < access->count; element++) {
        memcpy(access->data + (size_t)element * access->size, config + at, bytes);
    }
}

static void fill_view(const struct pci_view *view, uint64_t at, uint32_t size)
{
    if (view != NULL && at <= view->last && at + size > view->first) {
        view->fill(view->opaque);
    }
}

/* An access to what ECAM has at `at`; false: it is a write to a function. */
static bool access_config(const struct pci_bus *pci, uint64_t at, struct io_access *access)
{
    uint64_t function = at >> ECAM_FUNCTION_SHIFT;
    const uint8_t *config = function < PCI_FUNCTIONS ? pci->config[function] : NULL;

    if (config == NULL) {
        read_nobody(access);
    } else if (!access->is_write) {
        fill_view(pci->views[function], at & ECAM_REGISTER, access->size);
        read_config(config, at & ECAM_REGISTER, access);
    }
    return config == NULL || !access->is_write;
}

void pci_ecam_access(void *opaque, struct io_access *access)
{
    struct pci_ecam *ecam = opaque;

    if (!access_config(ecam->pci, access->offset, access)) {
        ecam->device.handler(ecam->device.opaque, access);
    }
}

uint64_t pci_ports_selected(const struct pci_ports *ports, uint64_t offset)
{
    return ((uint64_t)(ports->address & ADDRESS_FUNCTION) << 4) + (ports->address & ADDRESS_REGISTER) +
           (offset - CONFIG_DATA);
}

static void access_address(struct pci_ports *ports, struct io_access *access)
{
    for (uint32_t element = 0; element < access->count; element++) {
        uint8_t *data = access->data + (size_t)element * sizeof(ports->address);

        if (access->is_write) {
            memcpy(&ports->address, data, sizeof(ports->address));
            ports->address &= ADDRESS_ENABLE | ADDRESS_FUNCTION | ADDRESS_REGISTER;
        } else {
            memcpy(data, &ports->address, sizeof(ports->address));
        }
    }
}

void pci_ports_access(void *opaque, struct io_access *access)
{
    struct pci_ports *ports = opaque;
    bool served = true;

    if (access->offset >= CONFIG_DATA && ports->address & ADDRESS_ENABLE) {
        served = access_config(ports->pci, pci_ports_selected(ports, access->offset), access);
    } else if (access->offset == CONFIG_ADDRESS && access->size == sizeof(ports->address)) {
        access_address(ports, access);
    } else if (access->offset == RESET_CONTROL && access->size == 1) {
        served = false;
    } else {
        read_nobody(access);
    }
    if (!served) {
        ports->device.handler(ports->device.opaque, access);
    }
}
