/* SPDX-License-Identifier: BSD-2-Clause */
/* Accesses of translated code to chips that the core's tables do not have. */
#include "engine.h"

/* The PC's: 8259s, 8254, their ELCR, and port 61 with the 8254's gate. */
bool chips_have_port(uint32_t port)
{
    return port == 0x20 || port == 0x21 || port == 0xa0 || port == 0xa1 || (port >= 0x40 && port <= 0x43) ||
           port == 0x61 || port == 0x4d0 || port == 0x4d1;
}

bool chips_have_address(const struct softcpu_vcpu *vcpu, uint64_t gpa)
{
    return boundary_of(vcpu)->has_address(vcpu, gpa);
}

void chips_port_access(struct softcpu_vcpu *vcpu, uint32_t port, uint32_t size, uint32_t *value, bool is_write,
                       uintptr_t return_address)
{
    if (!boundary_of(vcpu)->port(vcpu, port, size, value, is_write)) {
        vcpu->io_return = 0;
        engine_leave_before(vcpu, LEAVE_ENDED, return_address);
    }
}

void chips_memory_access(struct softcpu_vcpu *vcpu, uint64_t gpa, uint32_t size, uint64_t *value, bool is_write)
{
    uint32_t words[2] = {(uint32_t)*value, (uint32_t)(*value >> 32)};
    uint32_t word_size = size < 4 ? size : 4;

    for (uint32_t at = 0; at < size; at += 4) {
        if (!boundary_of(vcpu)->memory(vcpu, gpa + at, word_size, &words[at / 4], is_write)) {
            engine_leave_before(vcpu, LEAVE_ENDED, CPU(&vcpu->cpu)->mem_io_pc);
        }
    }
    *value = words[0] | (uint64_t)words[1] << 32;
}
