/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Runs programs of valid instructions in the software CPU, at ring 0 and ring 3,
 * and on the host's own CPU, and compares everything that they leave behind:
 * registers, defined flags, x87 and SSE state, memory, and where and by which
 * exception they end.
 *
 * usage: softcpu_compare INSTRUCTIONS [SEED]   programs made from SEED (1), SEED + 1, … until so many have run
 *        softcpu_compare = SEED                this one, with its code
 *
 * The exit status is 1 if anything differs.
 */
#include "compare.h"
#include "softcpu_guest.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/wait.h>
#include <unistd.h>

/* Differences that are told before it ends. */
#define TOLD 20
#define TOLD_OF_ONE 6

/* Of each vector a HLT, whose address tells it. */
#define HALTS (STUBS + 0x100u)
#define GATE_PRESENT_IST1 0xee01u

#define CODE_SELECTOR_64 0x18u
/* INT3: how a program ends that meets no exception. */
#define END_VECTOR_INT3 3u
#define END_INSTRUCTION 0xcc

_Static_assert(COMPARE_CODE == PROGRAMS && COMPARE_DATA == DATA && COMPARE_STACK == STACKS, "as in the guest");

static void write_gates(uint8_t *image)
{
    for (uint32_t vector = 0; vector < 32; vector++) {
        uint32_t offset = HALTS + vector;
        uint32_t low = CODE_SELECTOR_64 << 16 | (offset & 0xffff);
        uint32_t high = (offset & 0xffff0000u) | GATE_PRESENT_IST1;

        image[offset] = 0xf4;
        memcpy(image + IDT_64 + 16 * vector, &low, sizeof(low));
        memcpy(image + IDT_64 + 16 * vector + 4, &high, sizeof(high));
    }
}

static void load_state(CPUX86State *env, const struct cpu_state *state)
{
    memcpy(env->regs, state->gpr, sizeof(state->gpr));
    env->eip = state->rip;
    cpu_load_eflags(env, (int)state->rflags, CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C | DF_MASK);
    cpu_set_fpuc(env, state->fcw);
    env->fpstt = state->fsw >> 11 & 7;
    env->fpus = (uint16_t)(state->fsw & ~0x3800u);
    cpu_set_mxcsr(env, state->mxcsr);
    for (uint32_t i = 0; i < 8; i++) {
        env->fptags[i] = !(state->valid >> i & 1);
        memcpy(&env->fpregs[(env->fpstt + i) & 7], state->st[i], 10);
    }
    for (uint32_t i = 0; i < 16; i++) {
        memcpy(&env->xmm_regs[i], state->xmm[i], 16);
    }
}

static uint64_t frame_value(const struct guest *guest, uint32_t from_top)
{
    uint64_t value;

    memcpy(&value, guest->ram + IST_STACK - from_top, sizeof(value));
    return value;
}

static bool has_error_code(uint32_t vector)
{
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

/* Intel SDM volume 3, figure 7-9: SS, RSP, RFLAGS, CS, RIP, and perhaps an error code. */
static void store_end(const struct guest *guest, struct cpu_end *end)
{
    const CPUX86State *env = &guest->vcpus[0]->cpu.env;
    struct cpu_state *state = &end->state;

    end->vector = (uint32_t)env->eip - 1 - HALTS;
    end->error_code = has_error_code(end->vector) ? (uint32_t)frame_value(guest, 48) : 0;
    memcpy(state->gpr, env->regs, sizeof(state->gpr));
    state->gpr[R_ESP] = frame_value(guest, 16);
    state->rip = frame_value(guest, 40);
    state->rflags = (uint32_t)frame_value(guest, 24);
    state->fcw = env->fpuc;
    state->fsw = (uint16_t)((env->fpus & ~0x3800u) | env->fpstt << 11);
    state->valid = 0;
    state->mxcsr = env->mxcsr;
    for (uint32_t i = 0; i < 8; i++) {
        state->valid |= (uint8_t)(!env->fptags[i] << i);
        memcpy(state->st[i], &env->fpregs[(env->fpstt + i) & 7], 10);
    }
    for (uint32_t i = 0; i < 16; i++) {
        memcpy(state->xmm[i], &env->xmm_regs[i], 16);
    }
    memcpy(end->stack, guest->ram + STACKS, sizeof(end->stack));
    memcpy(end->data, guest->ram + DATA, sizeof(end->data));
}

/* False: it did not come to an end. */
static bool run_in_guest(struct guest *guest, const struct compare_program *program, bool ring3, struct cpu_end *end)
{
    struct program world = {.mode = MODE_LONG, .ring3 = ring3};
    int reason;

    lock_acquire(guest->vcpus[0]);
    guest_load(guest, &world);
    memcpy(guest->ram + PROGRAMS, program->code, sizeof(program->code));
    memcpy(guest->ram + STACKS, program->stack, sizeof(program->stack));
    memcpy(guest->ram + DATA, program->data, sizeof(program->data));
    load_state(&guest->vcpus[0]->cpu.env, &program->state);
    do {
        reason = engine_execute(guest->vcpus[0]);
    } while (reason == EXCP_INTERRUPT || reason == LEAVE_AGAIN);
    lock_release(guest->vcpus[0]);
    if (reason != LEAVE_HALT) {
        fprintf(stderr, "  left with reason %#x\n", (unsigned)reason);
        return false;
    }
    store_end(guest, end);
    return true;
}

struct finding {
    const struct compare_program *program;
    bool tells;
    uint32_t found;
};

static void tell(struct finding *finding, const char *what, uint64_t here, uint64_t there)
{
    if (finding->found++ < TOLD_OF_ONE && finding->tells) {
        fprintf(stderr, "  %-10s %#18" PRIx64 " software CPU, %#18" PRIx64 " host\n", what, here, there);
    }
}

static void compare_value(struct finding *finding, const char *what, uint64_t here, uint64_t there)
{
    if (here != there) {
        tell(finding, what, here, there);
    }
}

static void compare_bytes(struct finding *finding, const char *what, const uint8_t *here, const uint8_t *there, uint32_t size)
{
    char name[32];

    for (uint32_t i = 0; i < size; i += 2) {
        uint16_t a;
        uint16_t b;

        memcpy(&a, here + i, 2);
        memcpy(&b, there + i, 2);
        if (a != b) {
            snprintf(name, sizeof(name), "%s+%x", what, i);
            tell(finding, name, a, b);
        }
    }
}

/* The flags that are defined where the program ended. */
static uint32_t defined_flags(const struct compare_program *program, const struct cpu_end *end)
{
    uint32_t offset = (uint32_t)end->state.rip - COMPARE_CODE;
    uint32_t at = program->count;

    if (end->vector != END_VECTOR_INT3) {
        for (at = 0; at < program->count && program->starts[at + 1] <= offset; at++) {
        }
    }
    return (CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C | DF_MASK) & ~program->undefined[at];
}

static bool compare(struct finding *finding, const struct cpu_end *here, const struct cpu_end *there)
{
    static const char *const names[16] = {"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
                                          "R8",  "R9",  "R10", "R11", "R12", "R13", "R14", "R15"};
    uint32_t flags = defined_flags(finding->program, there);
    char name[8];

    compare_value(finding, "vector", here->vector, there->vector);
    compare_value(finding, "RIP", here->state.rip, there->state.rip);
    if (finding->found == 0) {
        compare_value(finding, "error code", here->error_code, there->error_code);
    }
    for (uint32_t i = 0; i < 16; i++) {
        compare_value(finding, names[i], here->state.gpr[i], there->state.gpr[i]);
    }
    compare_value(finding, "RFLAGS", here->state.rflags & flags, there->state.rflags & flags);
    compare_value(finding, "FCW", here->state.fcw, there->state.fcw);
    compare_value(finding, "FSW", here->state.fsw, there->state.fsw);
    compare_value(finding, "FTW", here->state.valid, there->state.valid);
    compare_value(finding, "MXCSR", here->state.mxcsr, there->state.mxcsr);
    for (uint32_t i = 0; i < 8; i++) {
        snprintf(name, sizeof(name), "ST%u", i);
        compare_bytes(finding, name, here->state.st[i], there->state.st[i], 10);
    }
    for (uint32_t i = 0; i < 16; i++) {
        snprintf(name, sizeof(name), "XMM%u", i);
        compare_bytes(finding, name, here->state.xmm[i], there->state.xmm[i], 16);
    }
    compare_bytes(finding, "stack", here->stack, there->stack, sizeof(here->stack));
    compare_bytes(finding, "data", here->data, there->data, sizeof(here->data));
    return finding->found == 0;
}

static uint32_t executed(const struct compare_program *program, const struct cpu_end *end)
{
    uint32_t count = 0;

    while (count < program->count && program->starts[count + 1] <= end->state.rip - COMPARE_CODE) {
        count++;
    }
    return count;
}

/* The program on both; it may be cut short. */
static bool run_both(struct guest *guest, const struct compare_program *program, bool ring3, bool tells,
                     struct cpu_end *there)
{
    static struct cpu_end here;
    struct finding finding = {.program = program, .tells = tells};

    memset(&here, 0, sizeof(here));
    memset(there, 0, sizeof(*there));
    native_cpu_run(program, there);
    return run_in_guest(guest, program, ring3, &here) && compare(&finding, &here, there);
}

/* Which instruction is the first to do something else? */
static void find_instruction(struct guest *guest, const struct compare_program *whole, uint64_t seed, bool ring3)
{
    static struct compare_program program;
    static struct cpu_end there;
    uint32_t count = 1;

    for (; count <= whole->count; count++) {
        program = *whole;
        program.count = count;
        program.code[program.starts[count]] = END_INSTRUCTION;
        if (!run_both(guest, &program, ring3, false, &there)) {
            break;
        }
    }
    if (count > whole->count) {
        fprintf(stderr, "softcpu_compare: seed %" PRIu64 ", ring %d: as a whole alone\n", seed, ring3 ? 3 : 0);
        return;
    }
    fprintf(stderr, "softcpu_compare: seed %" PRIu64 ", ring %d, instruction %u:", seed, ring3 ? 3 : 0, count);
    for (uint32_t i = program.starts[count - 1]; i < program.starts[count]; i++) {
        fprintf(stderr, " %02x", program.code[i]);
    }
    fprintf(stderr, "\n");
    run_both(guest, &program, ring3, true, &there);
}

static bool compare_program(struct guest *guest, uint64_t seed, uint64_t *instructions)
{
    static struct compare_program program;
    static struct cpu_end there;
    bool same = true;

    compare_make_program(seed, &program);
    for (int ring3 = 0; ring3 < 2; ring3++) {
        if (!run_both(guest, &program, ring3, false, &there)) {
            find_instruction(guest, &program, seed, ring3);
            same = false;
        }
        *instructions += executed(&program, &there);
    }
    return same;
}

static void show(uint64_t seed)
{
    static struct compare_program program;
    FILE *file = fopen("softcpu_compare.bin", "wb");

    compare_make_program(seed, &program);
    if (file != NULL) {
        fwrite(program.code, 1, program.size, file);
        fclose(file);
        printf("the code is in softcpu_compare.bin: objdump -D -b binary -m i386:x86-64 --adjust-vma=%#x softcpu_compare.bin\n",
               COMPARE_CODE);
    }
}

struct progress {
    uint64_t seed;
    uint64_t instructions;
    uint64_t differ;
};

static int work(uint64_t wanted, volatile struct progress *progress)
{
    struct guest *guest = guest_new();

    if (guest == NULL || !native_cpu_prepare()) {
        fprintf(stderr, "softcpu_compare: cannot begin: %s\n", strerror(errno));
        return 2;
    }
    write_gates(guest->image);
    while (progress->instructions < wanted && progress->differ < TOLD) {
        uint64_t instructions = 0;

        progress->differ += !compare_program(guest, progress->seed, &instructions);
        progress->instructions += instructions;
        progress->seed++;
    }
    return progress->differ != 0;
}

int main(int argc, char **argv)
{
    bool one = argc == 3 && strcmp(argv[1], "=") == 0;
    uint64_t wanted = argc > 1 && !one ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    struct progress *progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t worker;
    int status;

    if (argc < 2 || progress == MAP_FAILED) {
        fprintf(stderr, "usage: %s INSTRUCTIONS [SEED] | = SEED\n", argv[0]);
        return 2;
    }
    progress->seed = seed;
    if (one) {
        show(seed);
    }
    worker = fork();
    if (worker == 0) {
        _exit(work(wanted, progress));
    }
    if (waitpid(worker, &status, 0) != worker || !WIFEXITED(status)) {
        fprintf(stderr, "softcpu_compare: seed %" PRIu64 " ended the process\n", progress->seed);
        return 1;
    }
    printf("softcpu_compare: seeds %" PRIu64 " to %" PRIu64 ", %" PRIu64 " instructions: %" PRIu64 " programs differ\n", seed,
           progress->seed - 1, progress->instructions, progress->differ);
    return WEXITSTATUS(status);
}
