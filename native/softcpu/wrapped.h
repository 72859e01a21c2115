/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unicorn's functions that ours take the place of: the linker sends Unicorn's
 * calls of NAME to __wrap_NAME (-Wl,--wrap; CMakeLists.txt reads the list
 * here), and __real_NAME is Unicorn's own. Both have Unicorn's prototype, so
 * one of ours that does not fit it does not compile.
 */
#ifndef VMM_SOFTCPU_WRAPPED_H
#define VMM_SOFTCPU_WRAPPED_H

#define WRAP_PASTE(name) __wrap_##name
#define WRAP(name) WRAP_PASTE(name)
#define REAL_PASTE(name) __real_##name
#define REAL(name) REAL_PASTE(name)

/* <assert.h> declares it only where assertions are on. */
void __assert_fail(const char *expression, const char *file, unsigned line, const char *function) QEMU_NORETURN;

#define WRAPPED(name) extern __typeof__(name) WRAP(name), REAL(name);

WRAPPED(__assert_fail)
WRAPPED(abort)
WRAPPED(cpu_abort_x86_64)
WRAPPED(cpu_check_watchpoint_x86_64)
WRAPPED(exit)
WRAPPED(g_assertion_message_expr)
WRAPPED(helper_cpuid_x86_64)
WRAPPED(helper_emms_x86_64)
WRAPPED(helper_fldcw_x86_64)
WRAPPED(helper_fldenv_x86_64)
WRAPPED(helper_frstor_x86_64)
WRAPPED(helper_fstenv_x86_64)
WRAPPED(helper_fxrstor_x86_64)
WRAPPED(helper_get_dr_x86_64)
WRAPPED(helper_hlt_x86_64)
WRAPPED(helper_inb_x86_64)
WRAPPED(helper_inl_x86_64)
WRAPPED(helper_inw_x86_64)
WRAPPED(helper_iret_protected_x86_64)
WRAPPED(helper_iret_real_x86_64)
WRAPPED(helper_ldmxcsr_x86_64)
WRAPPED(helper_lret_protected_x86_64)
WRAPPED(helper_outb_x86_64)
WRAPPED(helper_outl_x86_64)
WRAPPED(helper_outw_x86_64)
WRAPPED(helper_pause_x86_64)
WRAPPED(helper_rdmsr_x86_64)
WRAPPED(helper_rdtsc_x86_64)
WRAPPED(helper_rdtscp_x86_64)
WRAPPED(helper_read_crN_x86_64)
WRAPPED(helper_rsm_x86_64)
WRAPPED(helper_set_dr_x86_64)
WRAPPED(helper_syscall_x86_64)
WRAPPED(helper_sysenter_x86_64)
WRAPPED(helper_write_crN_x86_64)
WRAPPED(helper_wrmsr_x86_64)
WRAPPED(iotlb_to_section_x86_64)
WRAPPED(memory_region_dispatch_read_x86_64)
WRAPPED(memory_region_dispatch_write_x86_64)
WRAPPED(qemu_ram_addr_from_host_x86_64)
WRAPPED(qemu_system_reset_request)
WRAPPED(raise_exception_err_x86_64)
WRAPPED(tb_gen_code_x86_64)
WRAPPED(tlb_protect_code_x86_64)
WRAPPED(tlb_set_page_with_attrs_x86_64)
WRAPPED(tlb_unprotect_code_x86_64)
WRAPPED(x86_ldl_phys_x86_64)
WRAPPED(x86_ldq_phys_x86_64)
WRAPPED(x86_ldub_phys_x86_64)
WRAPPED(x86_lduw_phys_x86_64)
WRAPPED(x86_stl_phys_notdirty_x86_64)
WRAPPED(x86_stl_phys_x86_64)
WRAPPED(x86_stq_phys_x86_64)
WRAPPED(x86_stw_phys_x86_64)

#endif
