/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm/machine.h"

#include <stdlib.h>
#include <sys/ioctl.h>

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
