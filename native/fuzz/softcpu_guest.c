/* SPDX-License-Identifier: BSD-2-Clause */
#include "softcpu_guest.h"

#include <sys/mman.h>

#include "x86_code.h"

#define PRESENT_WRITABLE_USER_LARGE 0x87u

enum selectors { CODE_32 = 0x08, DATA_32 = 0x10, CODE_64 = 0x18, CODE_16 = 0x20, DATA_16 = 0x28, TASK = 0x40 };

/* Exceptions skip a byte and go on: at RIP, above an error code where there is one. */
static const uint8_t skip_16[] = {0x55, 0x89, 0xe5, 0xff, 0x46, 0x02, 0x5d, 0xcf}; /* push bp; mov bp,sp; inc word [bp+2]; pop bp; iret */
static const uint8_t skip_32[] = {0xff, 0x04, 0x24, 0xcf};                         /* inc dword [esp]; iret */
static const uint8_t skip_code_32[] = {0x83, 0xc4, 0x04, 0xff, 0x04, 0x24, 0xcf};  /* add esp,4; … */
static const uint8_t skip_64[] = {0x48, 0xff, 0x04, 0x24, 0x48, 0xcf};             /* inc qword [rsp]; iretq */
static const uint8_t skip_code_64[] = {0x48, 0x83, 0xc4, 0x08, 0x48, 0xff, 0x04, 0x24, 0x48, 0xcf};

enum stub_offsets { STUB_16 = 0, STUB_32 = 0x20, STUB_CODE_32 = 0x40, STUB_64 = 0x60, STUB_CODE_64 = 0x80, STUB_HALT = 0xa0 };

static void store64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof(value));
}

static void store32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof(value));
}

static bool pushes_error_code(uint32_t vector)
{
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

static void write_gate(uint8_t *gate, uint32_t selector, uint32_t offset, uint32_t attributes)
{
    store32(gate, (selector << 16) | (offset & 0xffff));
    store32(gate + 4, (offset & 0xffff0000u) | attributes);
}

static void write_interrupt_tables(uint8_t *ram)
{
    memcpy(ram + STUBS + STUB_16, skip_16, sizeof(skip_16));
    memcpy(ram + STUBS + STUB_32, skip_32, sizeof(skip_32));
    memcpy(ram + STUBS + STUB_CODE_32, skip_code_32, sizeof(skip_code_32));
    memcpy(ram + STUBS + STUB_64, skip_64, sizeof(skip_64));
    memcpy(ram + STUBS + STUB_CODE_64, skip_code_64, sizeof(skip_code_64));
    ram[STUBS + STUB_HALT] = 0xf4;
    for (uint32_t vector = 0; vector < 256; vector++) {
        bool end = vector == END_VECTOR;
        bool code = pushes_error_code(vector);

        store32(ram + 4 * vector, STUBS + (end ? STUB_HALT : STUB_16));
        /* Present 32-bit and 64-bit interrupt gates that ring 3 may call; stack 1 of the TSS in 64-bit mode. */
        write_gate(ram + IDT_64 + 16 * vector, CODE_64, STUBS + (end ? STUB_HALT : code ? STUB_CODE_64 : STUB_64), 0xee01);
        if (8 * vector < IDT_64 - IDT_32) {
            write_gate(ram + IDT_32 + 8 * vector, CODE_32, STUBS + (end ? STUB_HALT : code ? STUB_CODE_32 : STUB_32), 0xee00);
        }
    }
}

static void write_descriptors(uint8_t *ram)
{
    store64(ram + GDT + CODE_32, 0x00cf9b000000ffff);
    store64(ram + GDT + DATA_32, 0x00cf93000000ffff);
    store64(ram + GDT + CODE_64, 0x00af9b000000ffff);
    store64(ram + GDT + CODE_16, 0x000f9b010000ffff);
    store64(ram + GDT + DATA_16, 0x008f93000000ffff);
    store64(ram + GDT + 0x30, 0x00cffb000000ffff);
    store64(ram + GDT + 0x38, 0x00cff3000000ffff);
    store64(ram + GDT + TASK, 0x0000890000000067 | (uint64_t)TSS << 16);
    store64(ram + GDT + 0x50, 0x0000e20000000000 | (uint64_t)GDT << 16 | 0x7f); /* an LDT */
    store64(ram + GDT + 0x58, 0x0000ec0000000000 | (uint64_t)CODE_32 << 16 | STUBS); /* a call gate */
    store32(ram + TSS + 4, RING0_STACK); /* also RSP0's low half, 64-bit layout */
    store32(ram + TSS + 8, DATA_32);
    store64(ram + TSS + 0x24, IST_STACK);
}

static void write_page_tables(uint8_t *ram)
{
    store64(ram + PML4, PDPT | 7);
    store64(ram + PDPT, DIRECTORY | 7);
    store64(ram + PDPT + 3 * 8, HIGH_DIRECTORY | 7);
    for (uint32_t i = 0; i < 512; i++) {
        store64(ram + DIRECTORY + 8 * i, ((uint64_t)i << 21) | PRESENT_WRITABLE_USER_LARGE);
        store64(ram + HIGH_DIRECTORY + 8 * i, (0xc0000000u + ((uint64_t)i << 21)) | PRESENT_WRITABLE_USER_LARGE);
        store32(ram + DIRECTORY_32 + 4 * i, (i << 22) | PRESENT_WRITABLE_USER_LARGE);
        store32(ram + DIRECTORY_32 + 4 * (512 + i), ((512 + i) << 22) | PRESENT_WRITABLE_USER_LARGE);
    }
}

uint32_t program_bits(const struct program *program)
{
    static const uint8_t bits[MODES] = {16, 16, 32, 32, 32, 64};

    return bits[program->mode % MODES];
}

static void load_segment(CPUX86State *env, int segment, uint32_t selector, uint32_t base, uint32_t limit, uint32_t flags)
{
    env->segs[segment] = (SegmentCache){.selector = selector, .base = base, .limit = limit, .flags = flags};
}

static void load_segments(CPUX86State *env, uint32_t mode, uint32_t ring)
{
    uint32_t dpl = ring << DESC_DPL_SHIFT;
    uint32_t code = DESC_P_MASK | DESC_S_MASK | DESC_CS_MASK | DESC_R_MASK | DESC_A_MASK | dpl;
    uint32_t data = DESC_P_MASK | DESC_S_MASK | DESC_W_MASK | DESC_A_MASK | dpl;
    bool real = mode == MODE_REAL;

    if (real || mode == MODE_PROTECTED_16) {
        load_segment(env, R_CS, real ? PROGRAMS >> 4 : CODE_16 | ring, PROGRAMS, 0xffff, code);
    } else if (mode == MODE_LONG) {
        load_segment(env, R_CS, CODE_64 | ring, 0, 0xffffffff, code | DESC_L_MASK | DESC_G_MASK);
    } else {
        load_segment(env, R_CS, (ring == 3 ? 0x30 : CODE_32) | ring, 0, 0xffffffff, code | DESC_B_MASK | DESC_G_MASK);
    }
    for (int segment = R_ES; segment <= R_GS; segment++) {
        if (segment == R_CS) {
            continue;
        }
        if (real) {
            load_segment(env, segment, segment == R_SS ? PROGRAMS >> 4 : DATA >> 4, segment == R_SS ? PROGRAMS : DATA, 0xffff, data);
        } else {
            load_segment(env, segment, (ring == 3 ? 0x38 : DATA_32) | ring, 0, 0xffffffff, data | DESC_B_MASK | DESC_G_MASK);
        }
    }
}

/* An address in the program's data, a number of any size, or one at whose like an operation may overflow. */
static uint64_t register_value(struct random *random)
{
    static const uint64_t corners[] = {0, 1, UINT8_MAX + 1, (uint64_t)INT32_MIN, INT32_MAX, (uint64_t)INT64_MIN, INT64_MAX, UINT64_MAX};
    uint64_t value = random_next(random);

    if (value & 1) {
        return DATA + (value >> 8 & 0x1ffff);
    }
    return value & 6 ? value >> (value >> 8 & 63) : corners[value >> 8 & 7];
}

static void load_cpu(struct guest *guest, uint32_t index, const struct program *program)
{
    struct softcpu_vcpu *vcpu = guest->vcpus[index];
    CPUX86State *env = &vcpu->cpu.env;
    CPUState *cs = CPU(&vcpu->cpu);
    uint32_t mode = program->mode % MODES;
    uint32_t ring = program->ring3 && mode != MODE_REAL ? 3 : 0;
    bool long_mode = mode == MODE_LONG || mode == MODE_COMPATIBILITY;
    uint32_t code = PROGRAMS + index * PROGRAM_STRIDE + 16u * program->start;
    struct random random = {program->registers + index};

    cpu_x86_update_dr7(env, 0);
    memcpy(env, &guest->pristine, sizeof(*env));
    for (uint32_t i = 0; i < 16; i++) {
        env->regs[i] = register_value(&random);
        memcpy(&env->xmm_regs[i], &(uint64_t[2]){random_next(&random), random_next(&random)}, 16);
        memcpy(&env->fpregs[i & 7], &(uint64_t[2]){random_next(&random), random_next(&random) & 0xffff}, 10);
    }
    env->regs[R_ESP] = mode == MODE_REAL ? 0xe000 + 0x800 * index : STACKS + 0x800 * (index + 1);
    load_segments(env, mode, ring);
    env->cr[0] = CR0_ET_MASK | CR0_NE_MASK | (mode == MODE_REAL ? 0 : CR0_PE_MASK) |
                 (long_mode || mode == MODE_PAGED_32 ? CR0_PG_MASK | CR0_WP_MASK : 0);
    env->cr[3] = long_mode ? PML4 : DIRECTORY_32;
    env->cr[4] = CR4_OSFXSR_MASK | CR4_OSXMMEXCPT_MASK | CR4_PSE_MASK | (long_mode ? CR4_PAE_MASK : 0);
    env->efer = long_mode ? MSR_EFER_LME | MSR_EFER_LMA | MSR_EFER_SCE | MSR_EFER_NXE : 0;
    env->gdt = (SegmentCache){.base = GDT, .limit = 0xff};
    env->idt = (SegmentCache){.base = mode == MODE_REAL ? 0 : long_mode ? IDT_64 : IDT_32, .limit = long_mode ? 0xfff : 0x7ff};
    env->tr = (SegmentCache){.selector = TASK, .base = TSS, .limit = 0x67, .flags = DESC_P_MASK | (11u << DESC_TYPE_SHIFT)};
    env->eip = code - (uint32_t)env->segs[R_CS].base;
    env->eflags = 2 | (program->trap_flag ? TF_MASK : 0) | (ring == 3 && (random_next(&random) & 1) ? IOPL_MASK : 0);
    env->lstar = env->cstar = env->star = STUBS + STUB_HALT;
    env->star |= (uint64_t)CODE_32 << 32;
    env->a20_mask = -1;
    env->old_exception = -1;
    x86_update_hflags(env);
    env->hflags2 |= HF2_GIF_MASK;
    cs->interrupt_request = 0;
    cs->exception_index = -1;
    vcpu->shutdown = false;
    vcpu->abort = false;
    vcpu->flush_tlb = true;
}

void guest_load(struct guest *guest, const struct program *program)
{
    uint32_t size = program->size < CODE_BYTES ? program->size : CODE_BYTES;

    memcpy(guest->ram, guest->image, RAM_BYTES);
    for (uint32_t i = 0; i < GUEST_CPUS; i++) {
        uint32_t at = PROGRAMS + i * PROGRAM_STRIDE + 16u * program->start;

        memcpy(guest->ram + at, program->code[i], size);
        memcpy(guest->ram + at + size, (uint8_t[]){0x90, 0x90, 0x90, 0x90, 0xcd, END_VECTOR, 0xcd, END_VECTOR}, 8);
        load_cpu(guest, i, program);
    }
    memory_drop_all_code(guest->softcpu);
}

/* What the engine has of features that some guest is offered or may be one day; none of AVX, XSAVE, SVM. */
static void offer_features(CPUX86State *env)
{
    env->features[FEAT_1_EDX] = 0x078bfbfd;
    env->features[FEAT_1_ECX] = CPUID_EXT_SSE3 | CPUID_EXT_PCLMULQDQ | CPUID_EXT_SSSE3 | CPUID_EXT_CX16 | CPUID_EXT_SSE41 |
                                CPUID_EXT_SSE42 | CPUID_EXT_MOVBE | CPUID_EXT_POPCNT | CPUID_EXT_AES | CPUID_EXT_RDRAND;
    env->features[FEAT_7_0_EBX] = CPUID_7_0_EBX_BMI1 | CPUID_7_0_EBX_BMI2 | CPUID_7_0_EBX_ADX | CPUID_7_0_EBX_FSGSBASE |
                                  CPUID_7_0_EBX_SMEP | CPUID_7_0_EBX_SMAP;
    env->features[FEAT_8000_0001_EDX] = CPUID_EXT2_SYSCALL | CPUID_EXT2_NX | CPUID_EXT2_LM | CPUID_EXT2_RDTSCP;
    env->features[FEAT_8000_0001_ECX] = CPUID_EXT3_LAHF_LM | CPUID_EXT3_ABM;
    env->features[FEAT_XSAVE] = 0;
}

struct guest *guest_new(void)
{
    struct guest *guest = calloc(1, sizeof(*guest));

    if (guest == NULL) {
        return NULL;
    }
    guest->ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    guest->image = calloc(1, RAM_BYTES);
    if (guest->ram == MAP_FAILED || guest->image == NULL) {
        return NULL;
    }
    write_interrupt_tables(guest->image);
    write_descriptors(guest->image);
    write_page_tables(guest->image);
    guest->vm.fd = -1;
    guest->vm.request = vmm_kvm_vm_request;
    pthread_mutex_init(&guest->vm.io_lock, NULL);
    guest_memory_add(&guest->vm.memory, 0, RAM_BYTES, guest->ram, 0);
    guest->softcpu = softcpu_new(&guest->vm, &vmm_core);
    if (guest->softcpu == NULL) {
        return NULL;
    }
    for (uint32_t i = 0; i < GUEST_CPUS; i++) {
        guest->core[i] = (struct vmm_vcpu){
            .vm = &guest->vm, .run = &guest->run[i], .fd = -1, .request = vmm_kvm_vcpu_request, .index = i,
        };
        guest->vcpus[i] = engine_new_vcpu(guest->softcpu, &guest->core[i]);
        if (guest->vcpus[i] == NULL) {
            return NULL;
        }
        guest->core[i].engine = guest->vcpus[i];
        guest->vcpus[i]->physical_bits = 40;
        guest->vcpus[i]->apic_base = 0xfee00800;
        guest->softcpu->vcpus[i] = guest->vcpus[i];
        guest->softcpu->vcpu_count = i + 1;
        offer_features(&guest->vcpus[i]->cpu.env);
    }
    guest->pristine = guest->vcpus[0]->cpu.env;
    return guest;
}
