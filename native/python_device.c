/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/python_device.h"

#include <string.h>

/* Both hosts and elements are little-endian, so that memcpy converts. */
void python_device_access(void *opaque, struct io_access *access)
{
    uint64_t value = 0;

    if (access->count != 1 || access->size > sizeof(value)) {
        vmm_python_string(opaque, access);
    } else if (access->is_write) {
        memcpy(&value, access->data, access->size);
        vmm_python_write(opaque, access->offset, access->size, value);
    } else {
        value = vmm_python_read(opaque, access->offset, access->size);
        memcpy(access->data, &value, access->size);
    }
}
