/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * IN and OUT, which replace Unicorn's helpers of the same names by way of the
 * linker, and REP INS, whose helper unicorn/patches/string-runs.patch adds.
 */
#include "engine.h"

/* Unicorn lets every program do I/O; the privilege check is here. */
static void check_port_permission(CPUX86State *env, uint32_t port, uint32_t size, uintptr_t return_address)
{
    uint32_t cpl = env->hflags & HF_CPL_MASK;
    uint32_t iopl = (env->eflags >> IOPL_SHIFT) & 3;

    if (!(env->cr[0] & CR0_PE_MASK) || (cpl <= iopl && !(env->eflags & VM_MASK))) {
        return;
    }
    cpu_restore_state(env_cpu(env), return_address, true);
    switch (size) {
    case 1:
        helper_check_iob(env, port);
        break;
    case 2:
        helper_check_iow(env, port);
        break;
    default:
        helper_check_iol(env, port);
        break;
    }
}

/* Bytes of the OUT at RIP, or 0 if it is anything else (OUTS) or crosses a page. */
static uint32_t out_length(CPUX86State *env)
{
    target_ulong rip = env->segs[R_CS].base + env->eip;
    const uint8_t *code = tlb_vaddr_to_host(env, rip, MMU_DATA_LOAD, cpu_mmu_index(env, true));
    uint32_t room = (uint32_t)(TARGET_PAGE_SIZE - (rip & ~TARGET_PAGE_MASK));

    for (uint32_t at = 0; code != NULL && at + 1 < room && at < 14; at++) {
        uint8_t byte = code[at];
        bool rex = (env->hflags & HF_CS64_MASK) && (byte & 0xf0) == 0x40;

        if (byte == 0xe6 || byte == 0xe7) {
            return at + 2;
        }
        if (byte == 0xee || byte == 0xef) {
            return at + 1;
        }
        if (!rex && byte != 0x66 && byte != 0x67) {
            break;
        }
    }
    return 0;
}

static void restore_rip(void *opaque)
{
    struct softcpu_vcpu *vcpu = opaque;

    cpu_restore_state(CPU(&vcpu->cpu), vcpu->io_return, true);
}

uint64_t engine_io_rip(struct vmm_vcpu *core)
{
    struct softcpu_vcpu *vcpu = core->engine;

    if (vcpu->io_return != 0) {
        lock_assert_owner(vcpu);
        /* The caller holds the core's io_lock: the way out of the engine must not lead past it. */
        rescue_run(vcpu->softcpu, restore_rip, vcpu);
    }
    return vcpu->cpu.env.eip;
}

static void port_access(struct softcpu_vcpu *vcpu, uint32_t port, uint32_t size, uint32_t *value, bool is_write,
                        uintptr_t return_address)
{
    check_port_permission(&vcpu->cpu.env, port, size, return_address);
    virtual_time_spend(vcpu);
    vcpu->io_return = return_address;
    if (chips_have_port(port)) {
        chips_port_access(vcpu, port, size, value, is_write, return_address);
    } else {
        vcpu->softcpu->core->port_access(vcpu->core, (uint16_t)port, size, 1, (uint8_t *)value, is_write);
    }
    vcpu->io_return = 0;
    virtual_time_trace(vcpu, is_write ? TRACED_OUT : TRACED_IN, port | size << 16, *value);
}

/*
 * Linux learns its TSC's frequency by reading RDTSC and the PIT's output in
 * turn, and sees in RDTSC whether anything came between two of its reads; but
 * what comes behind the last RDTSC and in front of the read that ends it, it
 * takes for none. So where time passed in which the guest executed next to
 * nothing, the read is once more the one before: it was made before that time.
 */
#define PORT61 0x61u
#define PORT61_GAP_TSC 500000u
#define PORT61_GAP_INSTRUCTIONS 64u

static uint32_t note_port61(struct softcpu_vcpu *vcpu, uint32_t value)
{
    struct port61_read before = vcpu->port61;

    vcpu->port61 = (struct port61_read){
        .there = true,
        .value = value,
        .tsc = __builtin_ia32_rdtsc(),
        .instructions = vcpu->cpu.parent_obj.random_seed,
    };
    if (!before.there || vcpu->port61.tsc - before.tsc < PORT61_GAP_TSC ||
        vcpu->port61.instructions - before.instructions > PORT61_GAP_INSTRUCTIONS || virtual_time_is_on(vcpu)) {
        return value;
    }
    vcpu->port61.there = false;
    return before.value;
}

static bool is_pit(uint32_t port)
{
    return port - 0x40 < 4 || port == PORT61;
}

/* With virtual time it goes on to the end of its block, where it looks whether somebody stops it or not. */
static bool ends_here(const struct softcpu_vcpu *vcpu)
{
    return memory_has_work(vcpu->softcpu) || smm_has_smi(vcpu) ||
           (vmm_stop_requested(vcpu->softcpu->vm) && !virtual_time_is_on(vcpu));
}

static void port_write(CPUX86State *env, uint32_t port, uint32_t size, uint32_t value, uintptr_t return_address)
{
    struct softcpu_vcpu *vcpu = owner_of(env);
    uint32_t length;

    port_access(vcpu, port & 0xffff, size, &value, true, return_address);
    vcpu->port61.there = vcpu->port61.there && !is_pit(port & 0xffff);
    if (!ends_here(vcpu)) {
        return;
    }
    /*
     * The device moved memory, stored over code, sent an SMI, reset the machine or put it to sleep: end this block here,
     * its next instruction may be gone, or not be due.
     */
    memory_after_device(vcpu);
    cpu_restore_state(env_cpu(env), return_address, true);
    length = out_length(env);
    if (length != 0) {
        env->eip += length;
        if (!(env->hflags & HF_CS64_MASK)) {
            env->eip = (env->hflags & HF_CS32_MASK) ? (uint32_t)env->eip : (uint16_t)env->eip;
        }
        env->hflags &= ~(uint32_t)HF_INHIBIT_IRQ_MASK;
        engine_leave(vcpu, LEAVE_AGAIN);
    }
}

static uint32_t port_read(CPUX86State *env, uint32_t port, uint32_t size, uintptr_t return_address)
{
    struct softcpu_vcpu *vcpu = owner_of(env);
    uint32_t value = 0;

    port_access(vcpu, port & 0xffff, size, &value, false, return_address);
    memory_after_device(vcpu);
    return (port & 0xffff) == PORT61 && size == 1 ? note_port61(vcpu, value) : value;
}

void WRAP(helper_outb)(CPUX86State *env, uint32_t port, uint32_t data)
{
    port_write(env, port, 1, data & 0xff, GETPC());
}

void WRAP(helper_outw)(CPUX86State *env, uint32_t port, uint32_t data)
{
    port_write(env, port, 2, data & 0xffff, GETPC());
}

void WRAP(helper_outl)(CPUX86State *env, uint32_t port, uint32_t data)
{
    port_write(env, port, 4, data, GETPC());
}

target_ulong WRAP(helper_inb)(CPUX86State *env, uint32_t port)
{
    return port_read(env, port, 1, GETPC());
}

target_ulong WRAP(helper_inw)(CPUX86State *env, uint32_t port)
{
    return port_read(env, port, 2, GETPC());
}

target_ulong WRAP(helper_inl)(CPUX86State *env, uint32_t port)
{
    return port_read(env, port, 4, GETPC());
}

/* Bytes that an access to a device moves at the most: as many as in KVM, whose devices these are, too. */
#define RUN_BYTES 1024u

/*
 * REP INS whose next element goes to a linear address; sizes: MemOps, of an
 * element, and above two bits of the registers. Moves as many elements as KVM
 * would for one access of the device, and returns how many: they are over, and
 * counted as instructions, and the block ends, so that what the device changed
 * is seen to. 0: the next one needs the whole way, which also brings its page
 * into the TLB, or faults.
 */
target_ulong helper_rep_ins(CPUX86State *env, target_ulong address, uint32_t sizes)
{
    struct softcpu_vcpu *vcpu = owner_of(env);
    uint32_t size = 1u << (sizes & 3);
    target_ulong count = strings_run(env, address, R_EDI, sizes, RUN_BYTES);
    uint32_t port = env->regs[R_EDX] & 0xffff;
    uint8_t *to = strings_plain_ram(env, address, MMU_DATA_STORE);

    /* Virtual time has to see each of them. */
    if (to == NULL || count < 2 || chips_have_port(port) || virtual_time_is_on(vcpu)) {
        return 0;
    }
    check_port_permission(env, port, size, GETPC());
    vcpu->io_return = GETPC();
    vcpu->softcpu->core->port_access(vcpu->core, (uint16_t)port, size, (uint32_t)count, to, false);
    vcpu->io_return = 0;
    strings_advance(env, R_EDI, sizes, count);
    return strings_end(env, sizes, count);
}
