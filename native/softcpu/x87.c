/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * x87 instructions, executed by the host's own FPU in the guest's state: what
 * comes out are a CPU's results, flags and exceptions, down to the last bit of
 * FSIN. Nothing is raised on the host meanwhile, whatever the guest has
 * unmasked: an x87 exception waits for the next x87 instruction that looks for
 * one, and that is the guest's, before which we look ourselves.
 *
 * The instructions are those of x87_by_host (unicorn/patches/host-fpu.patch);
 * those that move the control word, the status word or the whole state are the
 * engine's, and are mended here where it has them wrong.
 */
#include "engine.h"

#include "fxsave.h"

/* Of the control and the status word: an exception's flag, and its mask. Intel SDM volume 1, 8.1.3. */
#define FPU_INVALID 0x01u
#define FPU_PRECISION 0x20u
#define FPU_EXCEPTIONS 0x3fu
/* Of the status word: exception summary, busy, top of the stack. */
#define FPU_SUMMARY 0x8080u
#define FPU_TOP 0x3800u
#define FPU_TOP_SHIFT 11

/* Execute a stub with the x87 state of an area, RDI = operand and the arithmetic flags; the host's own state is the default. */
void x87_execute(struct fxsave_area *area, const uint8_t *stub, void *operand, uint64_t *flags);

/* Four bytes each, the instruction and RET: with ST(i) from D8 C0 to DF FF, with [RDI] from D8 /0 to DF /7. */
extern const uint8_t x87_register_stubs[8][64][4];
extern const uint8_t x87_memory_stubs[8][8][4];

__asm__(".text\n"
        ".balign 16\n"
        ".local x87_execute\n"
        "x87_execute:\n"
        "    push %rbx\n"
        "    mov %rdi, %rbx\n"
        "    mov %rdx, %rdi\n"
        "    fxrstor64 (%rbx)\n"
        "    push (%rcx)\n"
        "    popfq\n"
        "    call *%rsi\n"
        "    pushfq\n"
        "    pop (%rcx)\n"
        "    fxsave64 (%rbx)\n"
        "    fninit\n"
        "    pop %rbx\n"
        "    ret\n"
        ".local x87_register_stubs\n"
        "x87_register_stubs:\n"
        ".set opcode, 0xd8\n"
        ".rept 8\n"
        ".set modrm, 0xc0\n"
        ".rept 64\n"
        "    .byte opcode, modrm, 0xc3, 0xcc\n"
        ".set modrm, modrm + 1\n"
        ".endr\n"
        ".set opcode, opcode + 1\n"
        ".endr\n"
        ".local x87_memory_stubs\n"
        "x87_memory_stubs:\n"
        ".set opcode, 0xd8\n"
        ".rept 8\n"
        ".set modrm, 0x07\n"
        ".rept 8\n"
        "    .byte opcode, modrm, 0xc3, 0xcc\n"
        ".set modrm, modrm + 8\n"
        ".endr\n"
        ".set opcode, opcode + 1\n"
        ".endr\n");

/* Bytes of the memory operand of D8 /0 to DF /7; negative: it is written. */
static const int8_t operand_bytes[8][8] = {
    {4, 4, 4, 4, 4, 4, 4, 4},    {4, 0, -4, -4, 0, 0, 0, 0},  {4, 4, 4, 4, 4, 4, 4, 4}, {4, -4, -4, -4, 0, 10, 0, -10},
    {8, 8, 8, 8, 8, 8, 8, 8},    {8, -8, -8, -8, 0, 0, 0, 0}, {2, 2, 2, 2, 2, 2, 2, 2}, {2, -2, -2, -2, 10, 8, -10, -8},
};

#define ARITHMETIC_FLAGS (CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C)

static bool exception_is_pending(const CPUX86State *env)
{
    return (env->fpus & ~(uint32_t)env->fpuc & FPU_EXCEPTIONS) != 0;
}

/* Without CR0.NE it would be IRQ 13, which is not there: the exception is ignored. */
static void check_pending(CPUX86State *env, uintptr_t return_address)
{
    if (exception_is_pending(env) && (env->cr[0] & CR0_NE_MASK)) {
        raise_exception_ra(env, EXCP10_COPR, return_address);
    }
}

static void update_summary(CPUX86State *env)
{
    env->fpus = (uint16_t)((env->fpus & ~FPU_SUMMARY) | (exception_is_pending(env) ? FPU_SUMMARY : 0));
}

static void load_area(const CPUX86State *env, struct fxsave_area *area)
{
    area->control = env->fpuc;
    area->status = (uint16_t)((env->fpus & ~FPU_TOP) | (env->fpstt << FPU_TOP_SHIFT & FPU_TOP));
    area->valid = 0;
    area->mxcsr = 0x1f80;
    for (uint32_t i = 0; i < 8; i++) {
        area->valid |= (uint8_t)(!env->fptags[i] << i);
        memcpy(area->st[i], &env->fpregs[(env->fpstt + i) & 7], sizeof(area->st[i]));
    }
}

static void store_area(CPUX86State *env, const struct fxsave_area *area)
{
    env->fpus = (uint16_t)(area->status & ~FPU_TOP);
    env->fpstt = (area->status & FPU_TOP) >> FPU_TOP_SHIFT;
    for (uint32_t i = 0; i < 8; i++) {
        env->fptags[i] = !((area->valid >> i) & 1);
        memcpy(&env->fpregs[(env->fpstt + i) & 7], area->st[i], sizeof(area->st[i]));
    }
    update_summary(env);
}

static void load_operand(CPUX86State *env, target_ulong address, int bytes, uint8_t *operand, uintptr_t return_address)
{
    uint64_t low;
    uint16_t high;

    switch (bytes) {
    case 2:
        low = cpu_lduw_data_ra(env, address, return_address);
        break;
    case 4:
        low = cpu_ldl_data_ra(env, address, return_address);
        break;
    case 8:
    case 10:
        low = cpu_ldq_data_ra(env, address, return_address);
        break;
    default:
        return;
    }
    memcpy(operand, &low, sizeof(low));
    if (bytes == 10) {
        high = (uint16_t)cpu_lduw_data_ra(env, address + 8, return_address);
        memcpy(operand + 8, &high, sizeof(high));
    }
}

static void store_operand(CPUX86State *env, target_ulong address, int bytes, const uint8_t *operand,
                          uintptr_t return_address)
{
    uint64_t low;
    uint16_t high;

    memcpy(&low, operand, sizeof(low));
    switch (bytes) {
    case 2:
        cpu_stw_data_ra(env, address, (uint32_t)low, return_address);
        break;
    case 4:
        cpu_stl_data_ra(env, address, (uint32_t)low, return_address);
        break;
    default:
        cpu_stq_data_ra(env, address, low, return_address);
    }
    if (bytes == 10) {
        memcpy(&high, operand + 8, sizeof(high));
        cpu_stw_data_ra(env, address + 8, high, return_address);
    }
}

/* FCMOVcc. */
static bool moves_by_flags(uint32_t opcode, uint32_t modrm)
{
    return (opcode == 2 || opcode == 3) && modrm >= 0xc0 && modrm < 0xe0;
}

/* FCOMI, FCOMIP, FUCOMI, FUCOMIP: the translator takes all flags from CC_SRC then. */
static bool sets_flags(uint32_t opcode, uint32_t modrm)
{
    return (opcode == 3 || opcode == 7) && modrm >= 0xe8;
}

/* The instruction's two bytes; the linear address of its operand, if it is in memory. */
void helper_x87(CPUX86State *env, uint32_t instruction, target_ulong address)
{
    uint32_t opcode = instruction >> 8 & 7;
    uint32_t modrm = instruction & 0xff;
    bool in_memory = modrm < 0xc0;
    int bytes = in_memory ? operand_bytes[opcode][modrm >> 3 & 7] : 0;
    uint64_t flags = 0;
    uint8_t operand[16] = {0};
    struct fxsave_area area;
    uint16_t ignored;

    check_pending(env, GETPC());
    load_operand(env, address, bytes, operand, GETPC());
    load_area(env, &area);
    ignored = exception_is_pending(env) ? area.status & FPU_EXCEPTIONS : 0;
    if (ignored != 0) {
        area.control |= FPU_EXCEPTIONS;
        area.status &= (uint16_t)~(FPU_SUMMARY | FPU_EXCEPTIONS);
    }
    if (moves_by_flags(opcode, modrm) || sets_flags(opcode, modrm)) {
        flags = cpu_cc_compute_all(env, (int)CC_OP) & ARITHMETIC_FLAGS;
    }
    x87_execute(&area, in_memory ? x87_memory_stubs[opcode][modrm >> 3 & 7] : x87_register_stubs[opcode][modrm & 63],
                operand, &flags);
    /* Of the unmasked exceptions, that of precision alone lets the instruction store. */
    if (bytes < 0 && (area.status & ~area.control & FPU_EXCEPTIONS & ~FPU_PRECISION) == 0) {
        store_operand(env, address, -bytes, operand, GETPC());
    }
    area.status |= ignored;
    store_area(env, &area);
    if (sets_flags(opcode, modrm)) {
        CC_SRC = flags & ARITHMETIC_FLAGS;
    }
}

/* In front of what may fault below: the engine finds its instruction by a return address into translated code. */
static void note_instruction(CPUX86State *env, uintptr_t return_address)
{
    cpu_restore_state(env_cpu(env), return_address, false);
}

void WRAP(helper_fldcw)(CPUX86State *env, uint32_t value)
{
    check_pending(env, GETPC());
    REAL(helper_fldcw)(env, value);
    update_summary(env);
}

void WRAP(helper_fldenv)(CPUX86State *env, target_ulong address, int data32)
{
    check_pending(env, GETPC());
    note_instruction(env, GETPC());
    REAL(helper_fldenv)(env, address, data32);
    update_summary(env);
}

void WRAP(helper_frstor)(CPUX86State *env, target_ulong address, int data32)
{
    check_pending(env, GETPC());
    note_instruction(env, GETPC());
    REAL(helper_frstor)(env, address, data32);
    update_summary(env);
}

/* It masks all exceptions once it has stored. Intel SDM volume 2, FNSTENV. */
void WRAP(helper_fstenv)(CPUX86State *env, target_ulong address, int data32)
{
    note_instruction(env, GETPC());
    REAL(helper_fstenv)(env, address, data32);
    cpu_set_fpuc(env, env->fpuc | FPU_EXCEPTIONS);
    update_summary(env);
}

void WRAP(helper_emms)(CPUX86State *env)
{
    check_pending(env, GETPC());
    REAL(helper_emms)(env);
    env->fpstt = 0; /* as every other MMX instruction */
}
