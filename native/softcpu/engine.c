/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The vCPUs' structures in the engine, and entering translated code.
 *
 * One Unicorn engine holds the translated code of the whole machine. Each vCPU
 * has a CPU structure of its own (registers, TLB, cache of blocks); the engine's
 * pointer to "the" CPU says who executes. cpu_exec is entered directly: none of
 * uc_emu_start's addresses to stop at, timers and restarts.
 */
#include "engine.h"

bool engine_takes_interrupts(const struct softcpu_vcpu *vcpu)
{
    return (vcpu->cpu.env.eflags & IF_MASK) && !(vcpu->cpu.env.hflags & HF_INHIBIT_IRQ_MASK);
}

/*
 * CPUClass.cpu_exec_interrupt: asked between blocks while interrupt_request is
 * set. True: an interrupt was delivered, or a fault on the way to its handler.
 */
static bool deliver_interrupt(CPUState *cs, int request)
{
    struct softcpu_vcpu *vcpu = (struct softcpu_vcpu *)cs;
    int vector = vcpu->acknowledged;

    if (!(request & (CPU_INTERRUPT_HARD | CPU_INTERRUPT_SMI))) {
        return false;
    }
    if (breakpoints_trap_is_next(vcpu)) {
        breakpoints_deliver(vcpu);
        return true;
    }
    if (vector != NOTHING_ACKNOWLEDGED) {
        vcpu->acknowledged = NOTHING_ACKNOWLEDGED;
        cs->interrupt_request &= ~(uint32_t)CPU_INTERRUPT_HARD;
        do_interrupt_x86_hardirq(cs->env_ptr, vector, 1);
        return true;
    }
    if (smm_has_smi(vcpu)) {
        smm_enter(vcpu);
        return true;
    }
    if ((request & CPU_INTERRUPT_HARD) && engine_takes_interrupts(vcpu)) {
        cs->interrupt_request &= ~(uint32_t)CPU_INTERRUPT_HARD;
        if (boundary_of(vcpu)->acknowledge == NULL) {
            engine_leave(vcpu, LEAVE_WINDOW);
        }
        vector = boundary_of(vcpu)->acknowledge(vcpu);
        if (vector >= 0) {
            do_interrupt_x86_hardirq(cs->env_ptr, vector, 1);
            return true;
        }
    }
    return false;
}

static void free_tlb(X86CPU *cpu)
{
    for (int i = 0; i < NB_MMU_MODES; i++) {
        g_free(cpu->neg.tlb.f[i].table);
        g_free(cpu->neg.tlb.d[i].iotlb);
    }
}

const struct softcpu_cpuid_leaf *engine_cpuid(const struct softcpu_vcpu *vcpu, uint32_t function, uint32_t subleaf)
{
    for (uint32_t i = 0; i < vcpu->cpuid_count; i++) {
        const struct softcpu_cpuid_leaf *leaf = &vcpu->cpuid[i];

        if (leaf->function == function && (!leaf->indexed || leaf->subleaf == subleaf)) {
            return leaf;
        }
    }
    return NULL;
}

/* A CPU structure like the engine's first one, but with its own TLB. */
static void clone_cpu(struct softcpu_vcpu *vcpu, const X86CPU *template)
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
    cs->cc->cpu_exec_interrupt = deliver_interrupt;
    cs->cc->do_unaligned_access = exceptions_unaligned;
    cs->created = true;
    cs->stopped = false;
    cs->halted = 0;
    cs->random_seed = 0;
    cs->cflags_next_tb = UINT32_MAX;
    tlb_init(cs);
    cpu_tb_jmp_cache_clear(cs);
}

static void clone_template(void *opaque)
{
    struct softcpu_vcpu *vcpu = opaque;

    clone_cpu(vcpu, (const X86CPU *)vcpu->softcpu->template_cpu);
}

struct softcpu_vcpu *engine_new_vcpu(struct softcpu *softcpu, struct vmm_vcpu *core)
{
    struct softcpu_vcpu *vcpu = aligned_alloc(64, ROUND_UP(sizeof(*vcpu), 64));

    if (vcpu == NULL) {
        return NULL;
    }
    memset((void *)vcpu, 0, sizeof(*vcpu));
    vcpu->softcpu = softcpu;
    vcpu->core = core;
    vcpu->acknowledged = NOTHING_ACKNOWLEDGED;
    vcpu->point = NO_POINT;
    if (softcpu->template_cpu == NULL) {
        softcpu->template_cpu = softcpu->uc->cpu;
    }
    if (!rescue_run(softcpu, clone_template, vcpu)) {
        free(vcpu);
        return NULL;
    }
    pthread_cond_init(&vcpu->turn, NULL);
    return vcpu;
}

static void free_breakpoints(CPUState *cs)
{
    CPUBreakpoint *breakpoint;
    CPUBreakpoint *next;

    QTAILQ_FOREACH_SAFE (breakpoint, &cs->breakpoints, entry, next) {
        g_free(breakpoint);
    }
}

void engine_free_vcpu(struct softcpu_vcpu *vcpu)
{
    pthread_cond_destroy(&vcpu->turn);
    free_tlb(&vcpu->cpu);
    free_breakpoints(CPU(&vcpu->cpu));
    free(vcpu->cpuid);
    free(vcpu);
}

static bool take_engine(struct softcpu_vcpu *vcpu)
{
    struct softcpu *softcpu = vcpu->softcpu;
    CPUState *cs = CPU(&vcpu->cpu);

    softcpu->uc->cpu = cs;
    if (softcpu->last_owner != vcpu) {
        softcpu->last_owner = vcpu;
        count(&softcpu->swaps);
        softcpu->uc->last_tb = NULL;
    }
    if (memory_has_work(softcpu) && !memory_apply_work(softcpu)) {
        return false;
    }
    if (__atomic_exchange_n(&vcpu->flush_tlb, false, __ATOMIC_RELAXED) ||
        vcpu->code_generation != softcpu->code_generation) {
        tlb_flush(cs);
    }
    if (vcpu->tb_flushes != softcpu->uc->tcg_ctx->tb_ctx.tb_flush_count) {
        cpu_tb_jmp_cache_clear(cs);
    }
    return true;
}

struct execution {
    struct softcpu_vcpu *vcpu;
    bool one;
    int reason;
};

static void execute(void *opaque)
{
    struct execution *execution = opaque;
    struct softcpu_vcpu *vcpu = execution->vcpu;
    struct softcpu *softcpu = vcpu->softcpu;
    struct uc_struct *uc = softcpu->uc;
    CPUState *cs = CPU(&vcpu->cpu);

    if (!take_engine(vcpu)) {
        execution->reason = LEAVE_ABORT;
        return;
    }
    uc->size_recur_mem = 0;
    uc->invalid_error = UC_ERR_OK;
    uc->quit_request = false;
    uc->stop_request = false;
    cs->halted = 0;
    cs->exception_index = -1;
    cs->mem_io_pc = 0;
    if (execution->one) {
        cs->singlestep_enabled = SSTEP_ENABLE | SSTEP_NOIRQ;
        /* A block of one instruction, made for this once. */
        cs->cflags_next_tb = CF_NOCACHE | 1;
    }
    execution->reason = cpu_exec(uc, cs);
    vcpu->code_generation = softcpu->code_generation;
    vcpu->tb_flushes = uc->tcg_ctx->tb_ctx.tb_flush_count;
}

static int run_engine(struct softcpu_vcpu *vcpu, bool one)
{
    struct execution execution = {.vcpu = vcpu, .one = one};
    bool entered = !engine_gave_up(vcpu->softcpu);
    bool done;

    lock_assert_owner(vcpu);
    done = rescue_run(vcpu->softcpu, execute, &execution);
    CPU(&vcpu->cpu)->singlestep_enabled = 0;
    CPU(&vcpu->cpu)->cflags_next_tb = UINT32_MAX;
    if (!done) {
        if (entered) {
            /* What cpu_exec does on its way out: flags that were not computed yet. */
            CPU(&vcpu->cpu)->cc->cpu_exec_exit(CPU(&vcpu->cpu));
        }
        return LEAVE_ABORT;
    }
    if (vcpu->shutdown) {
        return LEAVE_SHUTDOWN;
    }
    return vcpu->abort ? LEAVE_ABORT : execution.reason;
}

int engine_execute(struct softcpu_vcpu *vcpu)
{
    return run_engine(vcpu, false);
}

int engine_execute_one(struct softcpu_vcpu *vcpu)
{
    return run_engine(vcpu, true);
}
