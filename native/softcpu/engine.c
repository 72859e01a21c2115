/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Setting the engine up, and entering translated code.
 *
 * One Unicorn engine holds the translated code of the whole machine. Each vCPU
 * has a CPU structure of its own (registers, TLB, cache of blocks); the engine's
 * pointer to "the" CPU says who executes. cpu_exec is entered directly: none of
 * uc_emu_start's addresses to stop at, timers and restarts.
 */
#include "engine.h"

#include <errno.h>

#define CODE_BUFFER_BYTES (256u << 20)

bool tlb_fill_noting_access(CPUState *cs, vaddr addr, int size, MMUAccessType access, int mmu_idx, bool probe,
                            uintptr_t return_address);

void engine_ask_to_leave(struct assist_vcpu *vcpu)
{
    __atomic_store_n(&CPU(&vcpu->cpu)->exit_request, true, __ATOMIC_RELAXED);
    /* A block looks at this word first; cpu_exec then finds exit_request. */
    __atomic_store_n(&vcpu->cpu.neg.icount_decr.u16.high, (uint16_t)-1, __ATOMIC_RELEASE);
}

void QEMU_NORETURN engine_leave(struct assist_vcpu *vcpu, int reason)
{
    CPUState *cs = CPU(&vcpu->cpu);

    cs->exception_index = reason;
    cpu_loop_exit(cs);
}

/*
 * Called by cpu_exec with whatever made it leave translated code. Faults and
 * software interrupts are the engine's own to deliver, as in QEMU; a fault on
 * the way comes back here with its own number.
 */
static bool deliver_exception(struct uc_struct *uc, int index)
{
    CPUState *cs = uc->cpu;

    if (index >= 0 && index < EXCP_INTERRUPT) {
        x86_cpu_do_interrupt(cs);
        cs->exception_index = -1;
    }
    return false; /* an "invalid instruction" that would end the run: never */
}

/* CPUClass.cpu_exec_interrupt: asked between blocks while interrupt_request is set. */
static bool leave_for_interrupt(CPUState *cs, int request)
{
    CPUX86State *env = cs->env_ptr;

    if ((request & CPU_INTERRUPT_HARD) && (env->eflags & IF_MASK) && !(env->hflags & HF_INHIBIT_IRQ_MASK)) {
        cs->interrupt_request &= ~CPU_INTERRUPT_HARD;
        engine_leave((struct assist_vcpu *)cs, LEAVE_WINDOW);
    }
    return false;
}

static MemoryRegion *any_region(struct uc_struct *uc, hwaddr gpa)
{
    (void)gpa;
    return &((struct assist_vcpu *)uc->cpu)->assist->any_region;
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

static struct uc_struct *open_engine(uc_hook *hook)
{
    struct uc_struct *uc;

    if (uc_open(UC_ARCH_X86, UC_MODE_64, &uc) != UC_ERR_OK) {
        return NULL;
    }
    uc_ctl_set_tcg_buffer_size(uc, CODE_BUFFER_BYTES);
    /*
     * With a hook of this kind Unicorn leaves it to us when stores to a page
     * become fast (memory.c): it would never look at the page's code again.
     */
    if (uc_ctl_exits_enable(uc) != UC_ERR_OK ||
        uc_hook_add(uc, hook, UC_HOOK_MEM_WRITE_UNMAPPED, (void *)never_called, NULL, (uint64_t)1, (uint64_t)0) !=
            UC_ERR_OK ||
        uc_ctl_set_exits(uc, NULL, 0) != UC_ERR_OK) {
        uc_close(uc);
        return NULL;
    }
    uc->stop_interrupt = deliver_exception;
    uc->memory_mapping = any_region;
    uc->nested_level = 1;
    /* Else every load and store is followed by a way out, and what is left of the instruction happens twice. */
    uc->no_exit_request = true;
    return uc;
}

struct assist *assist_new(struct vmm_vm *vm, const struct vmm_core *core)
{
    struct assist *assist = calloc(1, sizeof(*assist));

    if (assist == NULL) {
        return NULL;
    }
    assist->vm = vm;
    assist->core = core;
    assist->any_region.perms = UC_PROT_ALL;
    assist->any_region.ram = true;
    assist->io_section.mr = &assist->any_region;
    assist->uc = open_engine(&assist->hook);
    if (assist->uc == NULL) {
        free(assist);
        return NULL;
    }
    pthread_mutex_init(&assist->map_mutex, NULL);
    if (lock_init(assist) != 0) {
        pthread_mutex_destroy(&assist->map_mutex);
        uc_close(assist->uc);
        free(assist);
        return NULL;
    }
    memory_attach(assist);
    return assist;
}

static void free_tlb(X86CPU *cpu)
{
    for (int i = 0; i < NB_MMU_MODES; i++) {
        g_free(cpu->neg.tlb.f[i].table);
        g_free(cpu->neg.tlb.d[i].iotlb);
    }
}

void assist_free(struct assist *assist)
{
    lock_destroy(assist);
    memory_detach(assist);
    for (uint32_t i = 0; i < assist->vcpu_count; i++) {
        engine_free_vcpu(assist->vcpus[i]);
    }
    /* Unicorn frees its own first CPU. */
    if (assist->template_cpu != NULL) {
        assist->uc->cpu = assist->template_cpu;
    }
    uc_close(assist->uc);
    pthread_mutex_destroy(&assist->map_mutex);
    free(assist);
}

const struct assist_cpuid_leaf *engine_cpuid(const struct assist_vcpu *vcpu, uint32_t function, uint32_t subleaf)
{
    for (uint32_t i = 0; i < vcpu->cpuid_count; i++) {
        const struct assist_cpuid_leaf *leaf = &vcpu->cpuid[i];

        if (leaf->function == function && (!leaf->indexed || leaf->subleaf == subleaf)) {
            return leaf;
        }
    }
    return NULL;
}

/* The engine refuses instructions of features that the guest's CPUID does not offer. */
static void take_features(struct assist_vcpu *vcpu)
{
    static const struct assist_cpuid_leaf none;
    const struct assist_cpuid_leaf *leaf;
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

static int take_cpuid(struct assist_vcpu *vcpu, const struct assist_cpuid_leaf *leaves, uint32_t count)
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
static int share_tsc(struct assist_vcpu *vcpu)
{
    const struct assist *assist = vcpu->assist;
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)&vcpu->tsc_offset,
    };

    if (assist->vcpu_count == 0) {
        return ioctl(vcpu->core->fd, KVM_GET_DEVICE_ATTR, &attribute) == 0 ? 0 : -errno;
    }
    vcpu->tsc_offset = assist->vcpus[0]->tsc_offset;
    return ioctl(vcpu->core->fd, KVM_SET_DEVICE_ATTR, &attribute) == 0 ? 0 : -errno;
}

/* A CPU structure like the engine's first one, but with its own TLB. */
static void clone_cpu(struct assist_vcpu *vcpu, const X86CPU *template)
{
    CPUState *cs = CPU(&vcpu->cpu);

    memcpy((void *)&vcpu->cpu, template, sizeof(vcpu->cpu));
    cs->cc = (CPUClass *)&vcpu->cpu.cc;
    cs->env_ptr = &vcpu->cpu.env;
    cs->icount_decr_ptr = &vcpu->cpu.neg.icount_decr;
    cs->cpu_index = (int)vcpu->core->index;
    QTAILQ_INIT(&cs->breakpoints);
    QTAILQ_INIT(&cs->watchpoints);
    cs->cc->tlb_fill = tlb_fill_noting_access;
    cs->cc->cpu_exec_interrupt = leave_for_interrupt;
    cs->created = true;
    cs->stopped = false;
    cs->halted = 0;
    cs->random_seed = 0;
    cs->cflags_next_tb = -1;
    tlb_init(cs);
    cpu_tb_jmp_cache_clear(cs);
}

struct assist_vcpu *engine_new_vcpu(struct assist *assist, struct vmm_vcpu *core)
{
    struct assist_vcpu *vcpu = aligned_alloc(64, ROUND_UP(sizeof(*vcpu), 64));

    if (vcpu == NULL) {
        return NULL;
    }
    memset((void *)vcpu, 0, sizeof(*vcpu));
    vcpu->assist = assist;
    vcpu->core = core;
    if (assist->template_cpu == NULL) {
        assist->template_cpu = assist->uc->cpu;
    }
    clone_cpu(vcpu, (const X86CPU *)assist->template_cpu);
    pthread_cond_init(&vcpu->turn, NULL);
    return vcpu;
}

void engine_free_vcpu(struct assist_vcpu *vcpu)
{
    pthread_cond_destroy(&vcpu->turn);
    free_tlb(&vcpu->cpu);
    free(vcpu->cpuid);
    free(vcpu);
}

int assist_add_vcpu(struct assist *assist, struct vmm_vcpu *core, const struct assist_cpuid_leaf *leaves,
                    uint32_t count)
{
    struct assist_vcpu *vcpu;
    int error;

    if (assist->vcpu_count == ASSIST_MAX_VCPUS) {
        return -ENOSPC;
    }
    vcpu = engine_new_vcpu(assist, core);
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
    core->engine = vcpu;
    core->engine_rip = engine_io_rip;
    assist->vcpus[assist->vcpu_count++] = vcpu;
    return 0;
}

static void take_engine(struct assist_vcpu *vcpu)
{
    struct assist *assist = vcpu->assist;
    CPUState *cs = CPU(&vcpu->cpu);

    assist->uc->cpu = cs;
    if (assist->last_owner != vcpu) {
        assist->last_owner = vcpu;
        assist->swaps++;
        assist->uc->last_tb = NULL;
    }
    if (memory_has_work(assist)) {
        memory_apply_work(assist);
    }
    if (vcpu->flush_tlb || vcpu->code_generation != assist->code_generation) {
        vcpu->flush_tlb = false;
        tlb_flush(cs);
    }
    if (vcpu->tb_flushes != assist->uc->tcg_ctx->tb_ctx.tb_flush_count) {
        cpu_tb_jmp_cache_clear(cs);
    }
}

int engine_execute(struct assist_vcpu *vcpu)
{
    struct assist *assist = vcpu->assist;
    struct uc_struct *uc = assist->uc;
    CPUState *cs = CPU(&vcpu->cpu);
    int reason;

    take_engine(vcpu);
    uc->size_recur_mem = 0;
    uc->invalid_error = UC_ERR_OK;
    uc->quit_request = false;
    uc->stop_request = false;
    cs->halted = 0;
    cs->exception_index = -1;
    cs->mem_io_pc = 0;
    reason = cpu_exec(uc, cs);
    vcpu->code_generation = assist->code_generation;
    vcpu->tb_flushes = uc->tcg_ctx->tb_ctx.tb_flush_count;
    if (vcpu->shutdown) {
        return LEAVE_SHUTDOWN;
    }
    return vcpu->abort ? LEAVE_ABORT : reason;
}

void assist_read_counters(const struct assist *assist, struct assist_counters *counters)
{
    *counters = (struct assist_counters){
        .swaps = assist->swaps,
        .invalidations = assist->invalidations,
        .translations_flushed = assist->uc->tcg_ctx->tb_ctx.tb_flush_count,
    };
    for (uint32_t i = 0; i < assist->vcpu_count; i++) {
        const struct assist_vcpu *vcpu = assist->vcpus[i];

        counters->instructions += vcpu->cpu.parent_obj.random_seed;
        counters->kvm_steps += vcpu->kvm_steps;
        counters->interrupts += vcpu->interrupts;
        counters->halts += vcpu->halts;
    }
}
