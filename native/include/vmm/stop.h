/* SPDX-License-Identifier: BSD-2-Clause */
/* The flag that asks a machine to stop (`struct vmm_vm`): set by any thread, looked at by all that may take long. */
#ifndef VMM_STOP_H
#define VMM_STOP_H

#include <stdbool.h>
#include <stdint.h>

static inline bool vmm_stop_is_set(const uint32_t *stop)
{
    return __atomic_load_n(stop, __ATOMIC_SEQ_CST) != 0;
}

#endif
