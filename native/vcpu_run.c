/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/vcpu_run.h"

#include <string.h>
#include <sys/ioctl.h>

#include "vmm/clock.h"

/* Intel SDM volume 3, 17.2.3. */
#define DR6_BREAKPOINTS 0xfu

bool vmm_vcpu_enter(struct vmm_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->thread_lock);
    vcpu->thread = pthread_self();
    vcpu->running = true;
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&vcpu->thread_lock);
    vcpu->end = (struct vcpu_end){.outcome = VCPU_STOPPED, .point = -1};
    return (vcpu->index != 0 || vmm_vcpu_note_start(vcpu)) && !vmm_stop_requested(vcpu->vm);
}

void vmm_vcpu_leave(struct vmm_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->thread_lock);
    vcpu->running = false;
    pthread_mutex_unlock(&vcpu->thread_lock);
}

static bool set_single_step(struct vmm_vcpu *vcpu, bool on)
{
    struct kvm_guest_debug debug = vcpu->debug;

    debug.control |= on ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP : 0;
    if (!vmm_vcpu_ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug)) {
        return false;
    }
    vcpu->start_watched = on;
    return true;
}

bool vmm_vcpu_note_start(struct vmm_vcpu *vcpu)
{
    if (vcpu->start_watched && !set_single_step(vcpu, false)) {
        return false;
    }
    if (__atomic_load_n(&vcpu->started_ns, __ATOMIC_RELAXED) == 0) {
        if (vcpu->vm->chips != NULL) {
            __atomic_store_n(&vcpu->started_at, chips_calls.clock(vcpu->vm->chips)->instructions, __ATOMIC_RELAXED);
        }
        __atomic_store_n(&vcpu->started_ns, monotonic_ns(), __ATOMIC_RELAXED);
    }
    return true;
}

/*
 * KVM_RUN of an AP returns EAGAIN once INIT woke it, but not at the SIPI that starts it. One single step there makes
 * the AP's first instruction an exit: it tells a started CPU from one that was only created, and when.
 */
static bool watch_for_start(struct vmm_vcpu *vcpu)
{
    struct kvm_mp_state state;

    if (__atomic_load_n(&vcpu->started_ns, __ATOMIC_RELAXED) != 0) {
        return true;
    }
    if (!vmm_vcpu_ioctl(vcpu, KVM_GET_MP_STATE, &state)) {
        return false;
    }
    if (state.mp_state == KVM_MP_STATE_RUNNABLE || state.mp_state == KVM_MP_STATE_HALTED) {
        return vmm_vcpu_note_start(vcpu);
    }
    return state.mp_state != KVM_MP_STATE_INIT_RECEIVED || set_single_step(vcpu, true);
}

int vmm_vcpu_reset(struct vmm_vcpu *vcpu)
{
    struct kvm_guest_debug off = {0};

    vcpu->started_ns = 0;
    if (vcpu->start_watched) {
        vcpu->start_watched = false;
        return vcpu->request(vcpu, KVM_SET_GUEST_DEBUG, &off);
    }
    return 0;
}

/* KVM_EXIT_DEBUG: is it what a debugger waits for, and not only our own single step? */
static bool is_for_debugger(const struct vmm_vcpu *vcpu)
{
    return (vcpu->debug.control & KVM_GUESTDBG_SINGLESTEP) || vcpu->run->debug.arch.exception != DB_VECTOR ||
           (vcpu->run->debug.arch.dr6 & DR6_BREAKPOINTS);
}

static bool end_with_internal_error(struct vmm_vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;

    if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION) {
        return vmm_vcpu_end(vcpu, VCPU_INTERNAL_ERROR, run->internal.suberror);
    }
    if (run->emulation_failure.ndata >= 1 &&
        (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
        uint32_t size = run->emulation_failure.insn_size;

        vcpu->end.instruction_size = size < 15 ? size : 15;
        memcpy(vcpu->end.instruction, run->emulation_failure.insn_bytes, vcpu->end.instruction_size);
    }
    return vmm_vcpu_end(vcpu, VCPU_EMULATION_FAILURE, run->internal.suberror);
}

static void count(uint64_t *counter)
{
    /* One writer, the vCPU's thread: a locked addition would be a tenth of what serving a port costs. */
    __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
}

/* KVM_RUN returned without an exit. Not inlined: the stack and registers that it needs would cost every exit. */
static __attribute__((noinline)) bool serve_errno(struct vmm_vcpu *vcpu, int error)
{
    if (error == EINTR) {
        count(&vcpu->interrupted);
        if (vcpu->profile != NULL) {
            profile_look(vcpu);
        }
    } else if (error != EAGAIN) {
        return vmm_vcpu_fail(vcpu, KVM_RUN, error);
    } else if (!watch_for_start(vcpu)) {
        return false;
    }
    return !vmm_stop_requested(vcpu->vm);
}

static bool serve_exit(struct vmm_vcpu *vcpu, int result)
{
    struct kvm_run *run = vcpu->run;
    uint32_t reason;

    if (result != 0) {
        return serve_errno(vcpu, errno);
    }
    reason = run->exit_reason < VCPU_EXIT_REASONS ? run->exit_reason : VCPU_EXIT_REASONS - 1;
    count(&vcpu->exits[reason]);
    if (vcpu->start_watched) {
        if (!vmm_vcpu_note_start(vcpu)) {
            return false;
        }
        if (run->exit_reason == KVM_EXIT_DEBUG && !is_for_debugger(vcpu)) {
            return !vmm_stop_requested(vcpu->vm);
        }
    }
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        vmm_port_access(vcpu, run->io.port, run->io.size, run->io.count, (uint8_t *)run + run->io.data_offset,
                        run->io.direction == KVM_EXIT_IO_OUT);
        break;
    case KVM_EXIT_MMIO:
        vmm_mmio_access(vcpu, run->mmio.phys_addr, run->mmio.len, run->mmio.data, run->mmio.is_write);
        break;
    case KVM_EXIT_SHUTDOWN:
        return vmm_vcpu_end(vcpu, VCPU_SHUTDOWN, 0);
    case KVM_EXIT_INTERNAL_ERROR:
        return end_with_internal_error(vcpu);
    case KVM_EXIT_FAIL_ENTRY:
        return vmm_vcpu_end(vcpu, VCPU_FAIL_ENTRY, run->fail_entry.hardware_entry_failure_reason);
    case KVM_EXIT_SYSTEM_EVENT:
        return vmm_vcpu_end(vcpu, VCPU_SYSTEM_EVENT, run->system_event.type);
    case KVM_EXIT_DEBUG:
        return vmm_vcpu_end(vcpu, VCPU_DEBUG, run->debug.arch.dr6);
    default:
        return vmm_vcpu_end(vcpu, VCPU_UNSUPPORTED, run->exit_reason);
    }
    return !vmm_stop_requested(vcpu->vm);
}

static __attribute__((noinline)) bool serve_exit_timed(struct vmm_vcpu *vcpu)
{
    uint64_t began = monotonic_ns();
    bool go_on = serve_exit(vcpu, 0);

    exit_times_add(vcpu->times, EXIT_TIMES_REASON, vcpu->run->exit_reason, false, monotonic_ns() - began);
    return go_on;
}

bool vmm_vcpu_serve_exit(struct vmm_vcpu *vcpu, int result)
{
    if (__builtin_expect(vcpu->times == NULL || result != 0, 1)) {
        return serve_exit(vcpu, result);
    }
    return serve_exit_timed(vcpu);
}

bool vmm_vcpu_finish_access(struct vmm_vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    int result;

    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELAXED);
    /* The same instruction may ask for more: an access across two pages, a string, which KVM leaves every 1024 elements. */
    while ((result = ioctl(vcpu->fd, KVM_RUN, 0)) == 0 &&
           (run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO)) {
        vmm_vcpu_serve_exit(vcpu, 0);
    }
    return result == 0 || errno == EINTR || errno == EAGAIN || vmm_vcpu_fail(vcpu, KVM_RUN, errno);
}

int vmm_vcpu_run(struct vmm_vcpu *vcpu)
{
    if (vmm_vcpu_enter(vcpu)) {
        while (vmm_vcpu_serve_exit(vcpu, ioctl(vcpu->fd, KVM_RUN, 0))) {
        }
        if (vcpu->end.outcome == VCPU_STOPPED) {
            vmm_vcpu_finish_access(vcpu);
        }
        /* What this vCPU wrote last. */
        vmm_io_lock(vcpu->vm);
        vmm_io_unlock(vcpu->vm);
    }
    vmm_vcpu_leave(vcpu);
    return (int)vcpu->end.outcome;
}

const struct vmm_core vmm_core = {
    .version = VMM_CORE_VERSION,
    .core_size = sizeof(struct vmm_core),
    .vm_size = sizeof(struct vmm_vm),
    .vcpu_size = sizeof(struct vmm_vcpu),
    .enter = vmm_vcpu_enter,
    .leave = vmm_vcpu_leave,
    .port_access = vmm_port_access,
    .mmio_access = vmm_mmio_access,
    .serve_exit = vmm_vcpu_serve_exit,
    .finish_access = vmm_vcpu_finish_access,
    .note_start = vmm_vcpu_note_start,
    .profile_add = profile_add,
    .chips = &chips_calls,
};
