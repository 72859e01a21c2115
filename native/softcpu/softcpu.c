/* SPDX-License-Identifier: BSD-2-Clause */
/* A machine's software CPU, from its beginning to its end: opening the engine, vCPUs with their CPUID, counters. */
#include "kvm_around.h"

#include <errno.h>

#define CODE_BUFFER_BYTES (256u << 20)

/*
 * Called by cpu_exec with whatever made it leave translated code. Faults and
 * software interrupts are the engine's own to deliver, as in QEMU; a fault on
 * the way comes back here with its own number.
 */
static bool deliver_exception(struct uc_struct *uc, int index)
{
    CPUState *cs = uc->cpu;

    if (index >= 0 && index < EXCP_INTERRUPT) {
        exceptions_deliver((struct softcpu_vcpu *)cs, index);
        /* A single step ends at the handler. */
        cs->exception_index = cs->singlestep_enabled ? EXCP_DEBUG : -1;
    }
    return false; /* an "invalid instruction" that would end the run: never */
}

static MemoryRegion *any_region(struct uc_struct *uc, hwaddr gpa)
{
    (void)gpa;
    return &((struct softcpu_vcpu *)uc->cpu)->softcpu->any_region;
}

static bool never_called(struct uc_struct *uc, uc_mem_type type, uint64_t address, int size, int64_t value, void *user)
{
    (void)uc;
    (void)type;
    (void)address;
    (void)size;
    (void)value;
    (void)user;
    return false;
}

static void open_engine(void *opaque)
{
    struct softcpu *softcpu = opaque;
    struct uc_struct *uc;

    if (uc_open(UC_ARCH_X86, UC_MODE_64, &uc) != UC_ERR_OK) {
        return;
    }
    uc_ctl_set_tcg_buffer_size(uc, CODE_BUFFER_BYTES);
    /*
     * With a hook of this kind Unicorn leaves it to us when stores to a page
     * become fast (memory.c): it would never look at the page's code again.
     */
    if (uc_ctl_exits_enable(uc) != UC_ERR_OK ||
        uc_hook_add(uc, &softcpu->hook, UC_HOOK_MEM_WRITE_UNMAPPED, (void *)never_called, NULL, (uint64_t)1, (uint64_t)0) !=
            UC_ERR_OK ||
        uc_ctl_set_exits(uc, NULL, 0) != UC_ERR_OK) {
        uc_close(uc);
        return;
    }
    uc->stop_interrupt = deliver_exception;
    uc->memory_mapping = any_region;
    uc->nested_level = 1;
    /* Else every load and store is followed by a way out, and what is left of the instruction happens twice. */
    uc->no_exit_request = true;
    softcpu->uc = uc;
}

static void close_engine(void *opaque)
{
    struct softcpu *softcpu = opaque;

    uc_close(softcpu->uc);
}

struct softcpu *softcpu_new(struct vmm_vm *vm, const struct vmm_core *core)
{
    struct softcpu *softcpu = calloc(1, sizeof(*softcpu));

    if (softcpu == NULL) {
        return NULL;
    }
    softcpu->vm = vm;
    softcpu->core = core;
    softcpu->boundary = vm->chips == NULL ? &kvm_boundary : &own_boundary;
    softcpu->any_region.perms = UC_PROT_ALL;
    softcpu->any_region.ram = true;
    softcpu->io_section.mr = &softcpu->any_region;
    if (!rescue_run(softcpu, open_engine, softcpu) || softcpu->uc == NULL) {
        free(softcpu);
        return NULL;
    }
    pthread_mutex_init(&softcpu->map_mutex, NULL);
    if (lock_init(softcpu) != 0) {
        pthread_mutex_destroy(&softcpu->map_mutex);
        rescue_run(softcpu, close_engine, softcpu);
        free(softcpu);
        return NULL;
    }
    if (!memory_attach(softcpu)) {
        softcpu_free(softcpu);
        return NULL;
    }
    return softcpu;
}

void softcpu_set_stubs(struct softcpu *softcpu, uint8_t *page, uint32_t gpa)
{
    softcpu->stubs_gpa = gpa;
    stubs_write(page, gpa);
}

void softcpu_free(struct softcpu *softcpu)
{
    lock_destroy(softcpu);
    memory_detach(softcpu);
    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        /* Devices may outlive the software CPU, and interrupt. */
        if (softcpu->boundary->tell != NULL) {
            softcpu->boundary->tell(softcpu->vcpus[i], false);
        }
        engine_free_vcpu(softcpu->vcpus[i]);
    }
    /* Unicorn frees its own first CPU. */
    if (softcpu->template_cpu != NULL) {
        softcpu->uc->cpu = softcpu->template_cpu;
    }
    softcpu->gave_up = false;
    rescue_run(softcpu, close_engine, softcpu);
    pthread_mutex_destroy(&softcpu->map_mutex);
    free(softcpu);
}

/* The engine refuses instructions of features that the guest's CPUID does not offer. */
static void take_features(struct softcpu_vcpu *vcpu)
{
    static const struct softcpu_cpuid_leaf none;
    const struct softcpu_cpuid_leaf *leaf;
    CPUX86State *env = &vcpu->cpu.env;
    /* What needs XSAVE's extended state has no place in the engine. */
    const uint32_t never = CPUID_EXT_XSAVE | CPUID_EXT_OSXSAVE | CPUID_EXT_AVX | CPUID_EXT_MONITOR | CPUID_EXT_VMX;

    leaf = engine_cpuid(vcpu, 0, 0);
    leaf = leaf == NULL ? &none : leaf;
    env->cpuid_vendor1 = leaf->ebx;
    env->cpuid_vendor2 = leaf->edx;
    env->cpuid_vendor3 = leaf->ecx;
    leaf = engine_cpuid(vcpu, 1, 0);
    leaf = leaf == NULL ? &none : leaf;
    env->features[FEAT_1_EDX] = leaf->edx;
    env->features[FEAT_1_ECX] = leaf->ecx & ~never;
    leaf = engine_cpuid(vcpu, 7, 0);
    leaf = leaf == NULL ? &none : leaf;
    env->features[FEAT_7_0_EBX] &= leaf->ebx;
    env->features[FEAT_7_0_ECX] &= leaf->ecx;
    leaf = engine_cpuid(vcpu, 0x80000001, 0);
    leaf = leaf == NULL ? &none : leaf;
    env->features[FEAT_8000_0001_EDX] = leaf->edx;
    env->features[FEAT_8000_0001_ECX] = leaf->ecx & ~CPUID_EXT3_SVM;
    env->features[FEAT_XSAVE] = 0;
    leaf = engine_cpuid(vcpu, 0x80000008, 0);
    vcpu->physical_bits = leaf == NULL ? 36 : leaf->eax & 0xff;
}

static int take_cpuid(struct softcpu_vcpu *vcpu, const struct softcpu_cpuid_leaf *leaves, uint32_t count)
{
    vcpu->cpuid = calloc(count + 1, sizeof(*leaves));
    if (vcpu->cpuid == NULL) {
        return -ENOMEM;
    }
    memcpy(vcpu->cpuid, leaves, count * sizeof(*leaves));
    vcpu->cpuid_count = count;
    return 0;
}

/* All vCPUs count from one origin, and the engine counts as KVM does. */
static int share_tsc(struct softcpu_vcpu *vcpu)
{
    const struct softcpu *softcpu = vcpu->softcpu;
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)&vcpu->tsc_offset,
    };

    if (softcpu->vcpu_count == 0 || softcpu->vcpus[0] == vcpu) {
        return vcpu->core->request(vcpu->core, KVM_GET_DEVICE_ATTR, &attribute);
    }
    vcpu->tsc_offset = softcpu->vcpus[0]->tsc_offset;
    return vcpu->core->request(vcpu->core, KVM_SET_DEVICE_ATTR, &attribute);
}

int softcpu_set_tsc_offset(struct vmm_vcpu *core, uint64_t offset)
{
    struct softcpu_vcpu *vcpu = core->engine;
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)&offset,
    };

    int error;

    vcpu->tsc_offset = offset;
    error = core->request(core, KVM_SET_DEVICE_ATTR, &attribute);
    error = error != 0 ? error : core->request(core, KVM_GET_DEVICE_ATTR, &attribute);
    if (error != 0) {
        return error;
    }
    /* KVM that executes the guest with the host's own TSC accepts an offset, and leaves it at 0. */
    vcpu->tsc_ahead = vcpu->tsc_offset - offset;
    return 0;
}

uint64_t softcpu_get_tsc_offset(const struct vmm_vcpu *core)
{
    return ((const struct softcpu_vcpu *)core->engine)->tsc_offset;
}

int softcpu_add_vcpu(struct softcpu *softcpu, struct vmm_vcpu *core, const struct softcpu_cpuid_leaf *leaves,
                    uint32_t count)
{
    struct softcpu_vcpu *vcpu;
    int error;

    if (softcpu->vcpu_count == SOFTCPU_MAX_VCPUS) {
        return -ENOSPC;
    }
    vcpu = engine_new_vcpu(softcpu, core);
    if (vcpu == NULL) {
        return -ENOMEM;
    }
    error = share_tsc(vcpu);
    if (error == 0) {
        error = take_cpuid(vcpu, leaves, count);
    }
    if (error != 0) {
        engine_free_vcpu(vcpu);
        return error;
    }
    take_features(vcpu);
    if (virtual_time_is_on(vcpu)) {
        /* At once: a look, which says when the next one is. */
        CPU(&vcpu->cpu)->icount_budget = 1;
        softcpu->virtual_time.turn = softcpu->vcpu_count == 0 ? vcpu : softcpu->virtual_time.turn;
    }
    core->engine = vcpu;
    core->engine_rip = engine_io_rip;
    softcpu->vcpus[softcpu->vcpu_count++] = vcpu;
    if (softcpu->boundary->tell != NULL) {
        softcpu->boundary->tell(vcpu, true);
    }
    return 0;
}

int softcpu_reset_vcpu(struct vmm_vcpu *core)
{
    struct softcpu_vcpu *vcpu = core->engine;
    CPUX86State *env = &vcpu->cpu.env;

    /* Registers and MSRs come from KVM when it runs, but for those that KVM lacks. */
    vcpu->stored = false;
    env->tsc_aux = 0;
    env->hflags &= ~(uint32_t)HF_SMM_MASK;
    env->hflags2 &= ~(uint32_t)(HF2_NMI_MASK | HF2_SMM_INSIDE_NMI_MASK);
    env->smbase = SMBASE_AT_RESET;
    core->smm = false;
    vcpu->smi_pending = false;
    vcpu->init_latched = false;
    vcpu->nmi_masked = false;
    vcpu->acknowledged = NOTHING_ACKNOWLEDGED;
    vcpu->debug_trap = 0;
    CPU(&vcpu->cpu)->interrupt_request &= ~(uint32_t)(CPU_INTERRUPT_HARD | CPU_INTERRUPT_SMI);
    vcpu->tsc_deadline = 0;
    vcpu->timer_due_ns = 0;
    return share_tsc(vcpu);
}

void softcpu_read_counters(const struct softcpu *softcpu, struct softcpu_counters *counters)
{
    *counters = (struct softcpu_counters){
        .swaps = __atomic_load_n(&softcpu->swaps, __ATOMIC_RELAXED),
        .invalidations = __atomic_load_n(&softcpu->invalidations, __ATOMIC_RELAXED),
        .translations_flushed = __atomic_load_n(&softcpu->uc->tcg_ctx->tb_ctx.tb_flush_count, __ATOMIC_RELAXED),
    };
    for (uint32_t i = 0; i < softcpu->vcpu_count; i++) {
        const struct softcpu_vcpu *vcpu = softcpu->vcpus[i];

        counters->instructions += __atomic_load_n(&vcpu->cpu.parent_obj.random_seed, __ATOMIC_RELAXED);
        counters->kvm_steps += __atomic_load_n(&vcpu->kvm_steps, __ATOMIC_RELAXED);
        counters->interrupts += __atomic_load_n(&vcpu->interrupts, __ATOMIC_RELAXED);
        counters->halts += __atomic_load_n(&vcpu->halts, __ATOMIC_RELAXED);
    }
}
