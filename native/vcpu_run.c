/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/vcpu_run.h"

#include <stdlib.h>
#include <string.h>

#include "vmm/clock.h"

/* Intel SDM volume 3, 17.2.3. */
#define DR6_BREAKPOINTS 0xfu

/* No thread-local variable tells which vCPU it is: the first access to one allocates, maybe in the middle of malloc. */
static void on_kick(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    if (info->si_code == SI_TIMER) {
        struct kvm_run *run = info->si_value.sival_ptr;

        __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_RELAXED);
    }
}

static void install_kick_handler(void)
{
    struct sigaction action = {.sa_sigaction = on_kick, .sa_flags = SA_RESTART | SA_SIGINFO};

    sigemptyset(&action.sa_mask);
    sigaction(VMM_KICK_SIGNAL, &action, NULL);
}

int vmm_kvm_vm_request(struct vmm_vm *vm, unsigned long request, void *argument)
{
    int result = ioctl(vm->fd, request, argument);

    return result < 0 ? -errno : result;
}

int vmm_kvm_vcpu_request(struct vmm_vcpu *vcpu, unsigned long request, void *argument)
{
    int result = ioctl(vcpu->fd, request, argument);

    return result < 0 ? -errno : result;
}

struct vmm_vm *vmm_vm_new(int fd)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct vmm_vm *vm = calloc(1, sizeof(*vm));
    pthread_mutexattr_t recursive;

    if (vm == NULL) {
        return NULL;
    }
    pthread_once(&once, install_kick_handler);
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&vm->io_lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    vm->fd = fd;
    vm->request = vmm_kvm_vm_request;
    return vm;
}

void vmm_vm_free(struct vmm_vm *vm)
{
    pthread_mutex_destroy(&vm->io_lock);
    free(vm);
}

struct vmm_vcpu *vmm_vcpu_new(struct vmm_vm *vm, int fd, struct kvm_run *run, uint32_t index)
{
    struct vmm_vcpu *vcpu = calloc(1, sizeof(*vcpu));

    if (vcpu == NULL) {
        return NULL;
    }
    vcpu->vm = vm;
    vcpu->fd = fd;
    vcpu->request = vmm_kvm_vcpu_request;
    vcpu->run = run;
    vcpu->index = vcpu->apic_id = index;
    pthread_mutex_init(&vcpu->thread_lock, NULL);
    return vcpu;
}

void vmm_vcpu_free(struct vmm_vcpu *vcpu)
{
    pthread_mutex_destroy(&vcpu->thread_lock);
    free(vcpu);
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

uint64_t vmm_vcpu_rip(struct vmm_vcpu *vcpu)
{
    struct kvm_regs regs;

    if (vcpu->engine_rip != NULL) {
        return vcpu->engine_rip(vcpu);
    }
    return vcpu->request(vcpu, KVM_GET_REGS, &regs) == 0 ? regs.rip : 0;
}

uint64_t vmm_vcpu_rip_of(void *vcpus, uint32_t index)
{
    return vmm_vcpu_rip(((struct vmm_vcpu **)vcpus)[index]);
}

void vmm_vm_stop(struct vmm_vm *vm, struct vmm_vcpu **vcpus, uint32_t count)
{
    __atomic_store_n(&vm->stop, 1, __ATOMIC_SEQ_CST);
    for (uint32_t i = 0; i < count; i++) {
        struct vmm_vcpu *vcpu = vcpus[i];

        pthread_mutex_lock(&vcpu->thread_lock);
        if (vcpu->running) {
            /* Covers the window between the loop's look at stop and its KVM_RUN. */
            __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELAXED);
            pthread_kill(vcpu->thread, VMM_KICK_SIGNAL);
            if (vcpu->nudge != NULL) {
                vcpu->nudge(vcpu);
            }
        }
        pthread_mutex_unlock(&vcpu->thread_lock);
    }
}

void vmm_vm_resume(struct vmm_vm *vm)
{
    __atomic_store_n(&vm->stop, 0, __ATOMIC_SEQ_CST);
}

/* io_lock was just taken. */
static void io_locked(struct vmm_vm *vm)
{
    if (vm->io_depth++ == 0 && coalesced_pending(vm->ring)) {
        coalesced_drain(vm->ring, &vm->ports, &vm->mmio, &vm->recent);
    }
}

bool vmm_io_trylock(struct vmm_vm *vm)
{
    if (pthread_mutex_trylock(&vm->io_lock) != 0) {
        return false;
    }
    io_locked(vm);
    return true;
}

void vmm_io_lock(struct vmm_vm *vm)
{
    pthread_mutex_lock(&vm->io_lock);
    io_locked(vm);
}

void vmm_io_unlock(struct vmm_vm *vm)
{
    vm->io_depth--;
    pthread_mutex_unlock(&vm->io_lock);
}

void vmm_vm_coalesce(struct vmm_vm *vm, struct kvm_coalesced_mmio_ring *ring)
{
    vmm_io_lock(vm);
    __atomic_store_n(&vm->ring, ring, __ATOMIC_RELAXED);
    vmm_io_unlock(vm);
}

bool vmm_vm_keeps_writes(struct vmm_vm *vm)
{
    return coalesced_pending(__atomic_load_n(&vm->ring, __ATOMIC_RELAXED));
}

bool vmm_vm_poll(struct vmm_vm *vm)
{
    const struct kvm_coalesced_mmio_ring *ring = __atomic_load_n(&vm->ring, __ATOMIC_RELAXED);
    uint32_t before = vm->polled;

    if (ring == NULL) {
        return false;
    }
    vm->polled = __atomic_load_n(&ring->first, __ATOMIC_RELAXED);
    return vm->polled == before && coalesced_pending(ring);
}


pthread_mutex_t *vmm_io_mutex(struct vmm_vm *vm)
{
    return &vm->io_lock;
}

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

static bool in_smm(const struct vmm_vcpu *vcpu)
{
    return vcpu->smm || (vcpu->run->flags & KVM_RUN_X86_SMM) != 0;
}

static void serve_access(struct vmm_vcpu *vcpu, struct io_table *table, struct io_access *access)
{
    struct vmm_vm *vm = vcpu->vm;
    struct recent_access *entry;

    vmm_io_lock(vm);
    vm->accessing = vcpu->index;
    entry = recent_begin(&vm->recent, access, (uint16_t)vcpu->index, table == &vm->mmio);
    io_table_access(table, access);
    recent_end(entry, access);
    vmm_io_unlock(vm);
}

void vmm_port_access(struct vmm_vcpu *vcpu, uint16_t port, uint32_t size, uint32_t count, uint8_t *data, bool is_write)
{
    struct io_access access = {
        .address = port, .data = data, .size = size, .count = count, .vcpu = vcpu->index, .is_write = is_write,
        .smm = in_smm(vcpu),
    };
    uint64_t began;

    if (__builtin_expect(vcpu->times == NULL, 1)) {
        serve_access(vcpu, &vcpu->vm->ports, &access);
        return;
    }
    began = monotonic_ns();
    serve_access(vcpu, &vcpu->vm->ports, &access);
    exit_times_add(vcpu->times, EXIT_TIMES_PORT, port, is_write, monotonic_ns() - began);
}

void vmm_mmio_access(struct vmm_vcpu *vcpu, uint64_t gpa, uint32_t size, uint8_t *data, bool is_write)
{
    struct io_access access = {
        .address = gpa, .data = data, .size = size, .count = 1, .vcpu = vcpu->index, .is_write = is_write,
        .smm = in_smm(vcpu),
    };
    uint64_t began;

    if (__builtin_expect(vcpu->times == NULL, 1)) {
        serve_access(vcpu, &vcpu->vm->mmio, &access);
        return;
    }
    began = monotonic_ns();
    serve_access(vcpu, &vcpu->vm->mmio, &access);
    exit_times_add(vcpu->times, EXIT_TIMES_MMIO, gpa & ~(uint64_t)0xfff, is_write, monotonic_ns() - began);
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
