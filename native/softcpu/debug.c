/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a debugger asks for. A breakpoint ends the block that is translated in
 * front of it, and a page with watched data has TLB entries that take the slow
 * path: where nobody debugs, translated code is the same as ever.
 */
#include "engine.h"

static bool is_breakpoint(const struct debug_point *point)
{
    return point->kinds == DEBUG_EXECUTE;
}

static void remove_breakpoints(CPUState *cs)
{
    CPUBreakpoint *breakpoint;
    CPUBreakpoint *next;

    QTAILQ_FOREACH_SAFE (breakpoint, &cs->breakpoints, entry, next) {
        if (breakpoint->flags & BP_GDB) {
            QTAILQ_REMOVE(&cs->breakpoints, breakpoint, entry);
            g_free(breakpoint);
        }
    }
}

static void add_breakpoint(CPUState *cs, uint64_t address)
{
    CPUBreakpoint *breakpoint = g_malloc(sizeof(*breakpoint));

    *breakpoint = (CPUBreakpoint){.pc = address, .flags = BP_GDB};
    /* In front of the guest's own: whoever debugs the guest comes first. */
    QTAILQ_INSERT_HEAD(&cs->breakpoints, breakpoint, entry);
}

/* Of all vCPUs at once, for they share their translations. */
static void take_points(void *opaque)
{
    struct softcpu *softcpu = opaque;
    const struct vmm_vm *vm = softcpu->vm;

    softcpu->watched = 0;
    for (uint32_t i = 0; i < vm->debug_count; i++) {
        softcpu->watched += !is_breakpoint(&vm->debug_points[i]);
    }
    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        CPUState *cs = CPU(&softcpu->vcpus[i]->cpu);

        remove_breakpoints(cs);
        for (uint32_t p = 0; p < vm->debug_count; p++) {
            if (is_breakpoint(&vm->debug_points[p])) {
                add_breakpoint(cs, vm->debug_points[p].address);
            }
        }
        __atomic_store_n(&softcpu->vcpus[i]->flush_tlb, true, __ATOMIC_RELAXED);
    }
    memory_drop_all_code(softcpu);
    softcpu->debug_generation = vm->debug_generation;
}

bool debug_begin(struct softcpu_vcpu *vcpu)
{
    struct softcpu *softcpu = vcpu->softcpu;

    lock_assert_owner(vcpu);
    vcpu->point = NO_POINT;
    /* Where the engine has given up, the run ends with that. */
    return softcpu->debug_generation == softcpu->vm->debug_generation || rescue_run(softcpu, take_points, softcpu) ||
           engine_gave_up(softcpu);
}

bool debug_is_stepping(const struct softcpu_vcpu *vcpu)
{
    return (vcpu->core->debug.control & KVM_GUESTDBG_SINGLESTEP) != 0;
}

static target_ulong linear_rip(const struct softcpu_vcpu *vcpu)
{
    return vcpu->cpu.env.segs[R_CS].base + vcpu->cpu.env.eip;
}

int debug_breakpoint_here(const struct softcpu_vcpu *vcpu)
{
    const struct vmm_vm *vm = vcpu->softcpu->vm;

    for (uint32_t i = 0; i < vm->debug_count; i++) {
        if (is_breakpoint(&vm->debug_points[i]) && vm->debug_points[i].address == linear_rip(vcpu)) {
            return (int)i;
        }
    }
    return NO_POINT;
}

static bool overlap(const struct debug_point *point, uint64_t address, uint64_t length)
{
    return point->address - address < length || address - point->address < point->length;
}

uint32_t debug_watched(const struct softcpu *softcpu, target_ulong page)
{
    uint32_t kinds = 0;

    for (uint32_t i = 0; i < softcpu->vm->debug_count; i++) {
        if (overlap(&softcpu->vm->debug_points[i], page, TARGET_PAGE_SIZE)) {
            kinds |= softcpu->vm->debug_points[i].kinds;
        }
    }
    return kinds;
}

/*
 * Called by the slow path in front of an access to a page with watched data.
 * A debugger wants to see what the access did: the instruction is begun once
 * more, alone, and let through.
 */
void WRAP(cpu_check_watchpoint)(CPUState *cs, vaddr address, vaddr length, MemTxAttrs attrs, int flags,
                                uintptr_t return_address)
{
    struct softcpu_vcpu *vcpu = (struct softcpu_vcpu *)cs;
    const struct vmm_vm *vm = vcpu->softcpu->vm;
    uint32_t kind = (flags & BP_MEM_WRITE) ? DEBUG_WRITE : DEBUG_READ;

    (void)attrs;
    for (uint32_t i = 0; i < vm->debug_count && vcpu->point == NO_POINT; i++) {
        if ((vm->debug_points[i].kinds & kind) && overlap(&vm->debug_points[i], address, length)) {
            vcpu->point = (int)i;
            if (return_address != 0) {
                engine_leave_before(vcpu, LEAVE_WATCHPOINT, return_address);
            }
            /* Of the delivery of an interrupt, which cannot be begun again: what it leads to comes after the look. */
            engine_ask_to_leave(vcpu);
        }
    }
    breakpoints_access(vcpu, address, length, kind, return_address);
}

int debug_step(struct softcpu_vcpu *vcpu)
{
    while (!vmm_stop_requested(vcpu->softcpu->vm)) {
        target_ulong rip = linear_rip(vcpu);
        int next = breakpoints_execute_one(vcpu);

        switch (next) {
        case EXCP_DEBUG:
        case LEAVE_PAUSE:
            return LEAVE_DEBUG;
        case LEAVE_HALT:
            vcpu->halted = true;
            return LEAVE_DEBUG;
        case LEAVE_WATCHPOINT:
            break;
        default:
            if (next > LEAVE_HALT && next != LEAVE_AGAIN) {
                return next;
            }
            /* Asked to leave before the instruction, or right behind one that changed the memory map. */
            if (linear_rip(vcpu) != rip) {
                return LEAVE_DEBUG;
            }
        }
        lock_yield(vcpu);
    }
    vcpu->point = NO_POINT;
    return 0;
}
