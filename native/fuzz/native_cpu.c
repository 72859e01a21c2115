/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A program on the host's own CPU: a signal's return puts its whole state in
 * place, the signal of its last instruction, or of a fault, has the state
 * afterwards, with the kernel's word for vector and error code.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "compare.h"

/* RFLAGS that a program may see or set, and the one that is always there. */
#define PROGRAM_FLAGS 0xcd5u
/* The kernel's XSAVE area behind the 512 bytes of FXSAVE: XSTATE_BV, x87 and SSE. */
#define XSAVE_HEADER 512
#define XSAVE_X87_SSE 3u

static const int registers[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static const struct compare_program *running;
static struct cpu_end *result;
static gregset_t resume;
static struct _libc_fpstate resume_fpu;

static void begin(int signal, siginfo_t *info, void *opaque)
{
    ucontext_t *context = opaque;
    struct _libc_fpstate *fpu = context->uc_mcontext.fpregs;
    const struct cpu_state *state = &running->state;
    uint64_t components;

    (void)signal;
    (void)info;
    memcpy(resume, context->uc_mcontext.gregs, sizeof(resume));
    memcpy(&resume_fpu, fpu, sizeof(resume_fpu));
    for (int i = 0; i < 16; i++) {
        context->uc_mcontext.gregs[registers[i]] = (greg_t)state->gpr[i];
    }
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)state->rip;
    context->uc_mcontext.gregs[REG_EFL] = (resume[REG_EFL] & ~(greg_t)PROGRAM_FLAGS) | (state->rflags & PROGRAM_FLAGS);
    fpu->cwd = state->fcw;
    fpu->swd = state->fsw;
    fpu->ftw = state->valid;
    fpu->mxcsr = state->mxcsr;
    memcpy(fpu->_st, state->st, sizeof(state->st));
    memcpy(fpu->_xmm, state->xmm, sizeof(state->xmm));
    memcpy(&components, (uint8_t *)fpu + XSAVE_HEADER, sizeof(components));
    components |= XSAVE_X87_SSE;
    memcpy((uint8_t *)fpu + XSAVE_HEADER, &components, sizeof(components));
}

static void end(int signal, siginfo_t *info, void *opaque)
{
    ucontext_t *context = opaque;
    struct _libc_fpstate *fpu = context->uc_mcontext.fpregs;
    struct cpu_state *state = &result->state;

    (void)signal;
    (void)info;
    for (int i = 0; i < 16; i++) {
        state->gpr[i] = (uint64_t)context->uc_mcontext.gregs[registers[i]];
    }
    state->rip = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
    state->rflags = (uint32_t)context->uc_mcontext.gregs[REG_EFL] & PROGRAM_FLAGS;
    state->fcw = fpu->cwd;
    state->fsw = fpu->swd;
    state->valid = (uint8_t)fpu->ftw;
    state->mxcsr = fpu->mxcsr;
    memcpy(state->st, fpu->_st, sizeof(state->st));
    memcpy(state->xmm, fpu->_xmm, sizeof(state->xmm));
    result->vector = (uint32_t)context->uc_mcontext.gregs[REG_TRAPNO];
    result->error_code = (uint32_t)context->uc_mcontext.gregs[REG_ERR];
    memcpy(result->stack, (void *)(uintptr_t)COMPARE_STACK, COMPARE_STACK_BYTES);
    memcpy(result->data, (void *)(uintptr_t)COMPARE_DATA, COMPARE_DATA_BYTES);
    memcpy(context->uc_mcontext.gregs, resume, sizeof(resume));
    memcpy(fpu, &resume_fpu, sizeof(resume_fpu));
}

static bool map(uintptr_t address, size_t size)
{
    return mmap((void *)address, size, PROT_READ | PROT_WRITE | PROT_EXEC,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == (void *)address;
}

bool native_cpu_prepare(void)
{
    static const int ends[] = {SIGTRAP, SIGSEGV, SIGILL, SIGFPE, SIGBUS};
    static uint8_t stack[1 << 16];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof(stack)};
    struct sigaction action = {.sa_sigaction = begin, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    if (!map(COMPARE_CODE, COMPARE_CODE_BYTES) || !map(COMPARE_STACK, COMPARE_STACK_BYTES) ||
        !map(COMPARE_DATA, COMPARE_DATA_BYTES) || sigaltstack(&alternate, NULL) != 0 ||
        sigaction(SIGUSR1, &action, NULL) != 0) {
        return false;
    }
    action.sa_sigaction = end;
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        if (sigaction(ends[i], &action, NULL) != 0) {
            return false;
        }
    }
    return true;
}

void native_cpu_run(const struct compare_program *program, struct cpu_end *to)
{
    running = program;
    result = to;
    memcpy((void *)(uintptr_t)COMPARE_CODE, program->code, COMPARE_CODE_BYTES);
    memcpy((void *)(uintptr_t)COMPARE_STACK, program->stack, COMPARE_STACK_BYTES);
    memcpy((void *)(uintptr_t)COMPARE_DATA, program->data, COMPARE_DATA_BYTES);
    raise(SIGUSR1);
}
