/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Is the engine that was linked in the one whose internals are used here, and
 * does it call back where it should? The layouts of its structures are the
 * compiler's business; this runs a guest of four instructions, without KVM.
 */
#include "engine.h"

/* Major, minor, patch; the last byte of uc_version says which build. */
#define WANTED_VERSION 0x020104u

#define PAGE_BYTES 4096

/* mov ax, 1234h; mov [800h], ax; inc word [800h]; hlt */
static const uint8_t code[] = {0xb8, 0x34, 0x12, 0xa3, 0x00, 0x08, 0xff, 0x06, 0x00, 0x08, 0xf4};

bool softcpu_fits(const struct vmm_core *core)
{
    return core->version == VMM_CORE_VERSION && core->core_size == sizeof(*core) &&
           core->vm_size == sizeof(struct vmm_vm) && core->vcpu_size == sizeof(struct vmm_vcpu);
}

uint32_t softcpu_engine_version(void)
{
    return uc_version(NULL, NULL);
}

static const char *run_code(struct softcpu *softcpu, const uint8_t *page)
{
    struct vmm_vcpu core = {0};
    struct softcpu_vcpu *vcpu = engine_new_vcpu(softcpu, &core);
    uint16_t stored;
    int reason;
    uint64_t count;
    uint64_t rip;

    if (vcpu == NULL) {
        return NULL; /* for lack of memory, as below */
    }
    vcpu->cpu.env.a20_mask = -1;
    vcpu->cpu.env.old_exception = -1;
    x86_update_hflags(&vcpu->cpu.env);
    lock_acquire(vcpu);
    do {
        reason = engine_execute(vcpu);
    } while (reason == EXCP_INTERRUPT); /* the ticker */
    lock_release(vcpu);
    count = vcpu->cpu.parent_obj.random_seed;
    rip = vcpu->cpu.env.eip;
    engine_free_vcpu(vcpu);
    if (reason != LEAVE_HALT || rip != sizeof(code)) {
        return "the software CPU's engine does not call vmm where it should: it was linked wrongly";
    }
    memcpy(&stored, page + 0x800, sizeof(stored));
    if (stored != 0x1235) {
        return "the software CPU's engine does not execute a store as it should";
    }
    return count == 4 ? NULL : "the software CPU's engine was built without its instruction counter";
}

const char *softcpu_self_test(void)
{
    struct vmm_vm *vm;
    struct softcpu *softcpu;
    uint8_t *page;
    /* Where there is no memory, or no thread, whoever makes a machine says so. */
    const char *problem = NULL;

    if (softcpu_engine_version() >> 8 != WANTED_VERSION) {
        return "the software CPU needs Unicorn 2.1.4, another version is linked in";
    }
    vm = calloc(1, sizeof(*vm));
    page = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
    if (vm != NULL && page != NULL) {
        memset(page, 0, PAGE_BYTES);
        memcpy(page, code, sizeof(code));
        vm->memory.count = 1;
        vm->memory.regions[0] = (struct guest_region){.gpa = 0, .size = PAGE_BYTES, .hva = page};
        softcpu = softcpu_new(vm, NULL);
        if (softcpu != NULL) {
            problem = run_code(softcpu, page);
            softcpu_free(softcpu);
        }
    }
    free(page);
    free(vm);
    return problem;
}
