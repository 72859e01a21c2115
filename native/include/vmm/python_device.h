/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The handler of every device that is written in Python. An access of one
 * element crosses over as plain integers: reading the fields of a struct
 * from Python would cost as much as the devices do.
 */
#ifndef VMM_PYTHON_DEVICE_H
#define VMM_PYTHON_DEVICE_H

#include "vmm/io_table.h"

/* An io_handler; opaque is the device's handle, which only Python looks into. */
void python_device_access(void *opaque, struct io_access *access);

/* In vmm/bus.py. The value is the element, zero-extended; of what a read gives, the low bytes count. */
uint64_t vmm_python_read(void *device, uint64_t offset, uint32_t size);
void vmm_python_write(void *device, uint64_t offset, uint32_t size, uint64_t value);

/* In vmm/bus.py: a string instruction's batch. */
void vmm_python_string(void *device, struct io_access *access);

#endif
