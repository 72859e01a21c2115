/*
 * What single exits cost beside port I/O, timed one by one: the instructions of kvm-unit-tests' x86/vmexit.c under its
 * names, and what it lacks. In flat protected mode: MOV from and to CR8 are of 64-bit mode alone.
 */
#include "exits.h"

#include "fw_cfg.h"

#define ROM_SEGMENT 0xf000u
#define PORT_QEMU 0x1234  /* kvm-unit-tests' port that nobody claims */
#define PORT_KERNEL 0x4d0 /* the ELCR of KVM's PICs */
#define PORT_FW_CFG_STRING 1024u

/* Intel SDM vol. 3A, 11.4.1: registers of the local APIC. */
#define APIC 0xfee00000u
#define APIC_VERSION 0x030
#define APIC_EOI 0x0b0
#define APIC_SPURIOUS 0x0f0
#define APIC_ICR_LOW 0x300
#define APIC_ICR_HIGH 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_TIMER_COUNT 0x380
#define APIC_TIMER_DIVIDE 0x3e0
#define APIC_ENABLE 0x1ff
#define DIVIDE_BY_1 0xb
#define ICR_SELF (1u << 18)

#define VECTOR_UD 6
#define VECTOR_GP 13
#define VECTOR_TIMER 0x40
#define VECTOR_SELF 0x41
#define VECTOR_IPI 0x42
#define VECTOR_STUCK 0x43
#define GATES (VECTOR_STUCK + 1)
#define CODE32 0x08
#define INTERRUPT_GATE 0x8e00 /* Intel SDM vol. 3A, 7.11 */

#define HPET 0xfed00000u
#define HPET_STATUS 0x20
#define HPET_COUNTER 0xf0
#define MMIO_NOBODY 0xfe800000u

#define MSR_TSC_ADJUST 0x3bu

#define SMALL_PAGE 0x1000u
#define LARGE_PAGE 0x200000u

/* How long an instruction may take that is tried: 10 ms with KVM's local APIC, whose timer counts nanoseconds. */
#define TRIAL 10000000u

/* How long another CPU may take to do what it is told to, in TSC ticks: seconds. */
#define PATIENCE (1ull << 34)

struct gate {
    uint16_t offset_low;
    uint16_t selector;
    uint16_t kind;
    uint16_t offset_high;
};

/* gates.S */
extern const uint8_t on_timer[], on_self[], on_ipi[], on_ud[], on_gp[], on_stuck[], second_cpu[];
void second_main(void);

volatile uint32_t timer_seen;
volatile uint32_t self_seen;
volatile uint32_t ipi_seen;
volatile uint32_t faulted;
volatile uint32_t resume;

static struct gate idt[GATES];
static volatile bool second_runs;
static volatile bool second_halts;
static bool has_second;
static bool has_hypercall;
static bool has_tsc_adjust;
static uint8_t second_id;
static uint16_t pm_timer;
static uint32_t small_next;
static uint32_t small_end;
static uint32_t large_next;
static uint32_t large_end;
/* One instruction and RET, in RAM: KVM writes the one of the two hypercalls there that the CPU has. */
static uint8_t code[4];
static uint8_t string[PORT_FW_CFG_STRING];

static uint32_t load(uint32_t address)
{
    uint32_t value;

    __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static void store(uint32_t address, uint32_t value)
{
    __asm__ volatile("movl %1, (%0)" : : "r"(address), "r"(value) : "memory");
}

static void set_gate(uint32_t vector, const uint8_t *handler)
{
    uint32_t address = (uint32_t)handler;

    idt[vector] = (struct gate){(uint16_t)address, CODE32, INTERRUPT_GATE, (uint16_t)(address >> 16)};
}

static void load_idt(void)
{
    struct {
        uint16_t limit;
        uint32_t base;
    } __attribute__((packed)) pointer = {sizeof(idt) - 1, (uint32_t)idt};

    __asm__ volatile("lidt %0" : : "m"(pointer));
    store(APIC + APIC_SPURIOUS, APIC_ENABLE);
}

static void run_code(void)
{
    uint32_t eax = UINT32_MAX; /* no hypercall that there is: KVM answers -KVM_ENOSYS */
    uint32_t ecx = MSR_TSC_ADJUST;
    uint32_t edx;

    __asm__ volatile("call *%3" : "+a"(eax), "+c"(ecx), "=d"(edx) : "r"(code) : "memory");
}

/*
 * Make `code` of an instruction; false: it raises a fault, or never ends: where KVM interprets the guest, it writes a
 * hypercall anew and has the processor execute it, for ever.
 */
static bool make_code(const char *instruction, uint32_t size)
{
    memcpy(code, instruction, size);
    code[size] = 0xc3; /* RET */
    resume = (uint32_t)&code[size];
    faulted = 0;
    store(APIC + APIC_LVT_TIMER, VECTOR_STUCK);
    store(APIC + APIC_TIMER_COUNT, TRIAL);
    __asm__ volatile("sti" : : : "memory");
    run_code();
    __asm__ volatile("cli" : : : "memory");
    store(APIC + APIC_TIMER_COUNT, 0);
    store(APIC + APIC_LVT_TIMER, VECTOR_TIMER);
    return !faulted;
}

/* The second CPU: waits for interrupts, awake or halted. */
void second_main(void)
{
    load_idt();
    second_id = apic_id();
    second_runs = true;
    for (;;) {
        if (second_halts)
            __asm__ volatile("sti; hlt; cli" : : : "memory");
        else
            __asm__ volatile("sti; nop; pause; cli" : : : "memory");
    }
}

void exits_init(uint32_t expected, uint32_t ram, uint32_t ram_end)
{
    uint64_t began;

    set_gate(VECTOR_UD, on_ud);
    set_gate(VECTOR_GP, on_gp);
    set_gate(VECTOR_TIMER, on_timer);
    set_gate(VECTOR_SELF, on_self);
    set_gate(VECTOR_IPI, on_ipi);
    set_gate(VECTOR_STUCK, on_stuck);
    load_idt();
    store(APIC + APIC_TIMER_DIVIDE, DIVIDE_BY_1);
    has_tsc_adjust = make_code("\x0f\x32", 2); /* RDMSR */
    has_hypercall = make_code("\x0f\x01\xc1", 3) || make_code("\x0f\x01\xd9", 3); /* VMCALL, VMMCALL */
    pm_timer = power_timer_port();
    small_next = ram;
    small_end = large_next = ram + 16 * LARGE_PAGE;
    large_end = ram_end;
    if (expected < 2)
        return;
    ap_entry = ROM_SEGMENT << 16 | ((uint32_t)second_cpu & 0xffff);
    cpus_start(expected - 1);
    for (began = read_tsc(); !second_runs && read_tsc() - began < PATIENCE;)
        __asm__ volatile("pause");
    has_second = second_runs;
}

static void nothing(void)
{
}

static void cpuid(void)
{
    uint32_t eax = 0;
    uint32_t ebx;
    uint32_t ecx = 0;
    uint32_t edx;

    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
}

static void read_tsc_adjust(void)
{
    uint32_t low;
    uint32_t high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(MSR_TSC_ADJUST));
}

static void write_tsc_adjust(void)
{
    __asm__ volatile("wrmsr" : : "a"(0), "d"(0), "c"(MSR_TSC_ADJUST));
}

static void in_pm_timer(void)
{
    in32(pm_timer);
}

static void in_qemu(void)
{
    in32(PORT_QEMU);
}

static void in_kernel(void)
{
    in32(PORT_KERNEL);
}

static void out_kernel(void)
{
    out32(PORT_KERNEL, 0);
}

static void in_string(void)
{
    in8_string(PORT_QEMU, string, sizeof(string));
}

static void end_of_interrupt(void)
{
    store(APIC + APIC_EOI, 0);
}

static void read_apic(void)
{
    load(APIC + APIC_VERSION);
}

static void read_hpet(void)
{
    load(HPET + HPET_COUNTER);
}

static void write_hpet(void)
{
    store(HPET + HPET_STATUS, 0); /* clears nothing */
}

static void read_nobody(void)
{
    load(MMIO_NOBODY);
}

static void write_nobody(void)
{
    store(MMIO_NOBODY, 0);
}

static void self_ipi(void)
{
    store(APIC + APIC_ICR_LOW, ICR_SELF | VECTOR_SELF);
    __asm__ volatile("sti; nop; cli" : : : "memory");
}

static void halt_until_timer(void)
{
    uint32_t seen = timer_seen;

    store(APIC + APIC_TIMER_COUNT, 1);
    while (timer_seen == seen)
        __asm__ volatile("sti; hlt; cli" : : : "memory");
}

static void keep_second_awake(void)
{
    second_halts = false;
}

static void let_second_halt(void)
{
    uint64_t began = read_tsc();

    second_halts = true;
    while (read_tsc() - began < 1u << 20) /* until it has */
        __asm__ volatile("pause");
}

static void send_ipi(void)
{
    uint32_t seen = ipi_seen;
    uint64_t began = read_tsc();

    store(APIC + APIC_ICR_HIGH, (uint32_t)second_id << 24);
    store(APIC + APIC_ICR_LOW, VECTOR_IPI);
    while (ipi_seen == seen && read_tsc() - began < PATIENCE)
        __asm__ volatile("pause");
}

static void touch_small(void)
{
    store(small_next, 1);
    small_next += SMALL_PAGE;
}

static void touch_large(void)
{
    store(large_next, 1);
    large_next += LARGE_PAGE;
}

const struct exit_test exit_tests[EXIT_TESTS] = {
    {"nothing", nothing, 0, false},
    {"cpuid", cpuid, 0, false},
    {"vmcall", run_code, 0, false},
    {"inl_from_pmtimer", in_pm_timer, 0, false},
    {"inl_from_qemu", in_qemu, 0, false},
    {"inl_from_kernel", in_kernel, 0, false},
    {"outl_to_kernel", out_kernel, 0, false},
    {"insb_from_qemu", in_string, 0, false},
    {"rd_tsc_adjust_msr", read_tsc_adjust, 0, false},
    {"wr_tsc_adjust_msr", write_tsc_adjust, 0, false},
    {"apic_read", read_apic, 0, false},
    {"apic_eoi", end_of_interrupt, 0, false},
    {"mmio_read_hpet", read_hpet, 0, false},
    {"mmio_write_hpet", write_hpet, 0, false},
    {"mmio_read_nobody", read_nobody, 0, false},
    {"mmio_write_nobody", write_nobody, 0, false},
    {"self_ipi_sti_nop", self_ipi, 0, false},
    {"hlt_timer", halt_until_timer, 0, false},
    {"ipi", send_ipi, keep_second_awake, true},
    {"ipi_halt", send_ipi, let_second_halt, true},
    {"touch_4k", touch_small, 0, false},
    {"touch_2m", touch_large, 0, false},
};

const char *exits_unable(const struct exit_test *test)
{
    if (test->needs_cpu && !has_second)
        return "one CPU";
    if (test->once == run_code && !has_hypercall)
        return "no hypercalls";
    if ((test->once == read_tsc_adjust || test->once == write_tsc_adjust) && !has_tsc_adjust)
        return "no such MSR";
    if (test->once == in_pm_timer && !pm_timer)
        return "no PM timer";
    return 0;
}

uint32_t exits_time(const struct exit_test *test)
{
    uint64_t began;

    if ((test->once == touch_small && small_next >= small_end) || (test->once == touch_large && large_next >= large_end))
        return UINT32_MAX;
    if (test->prepare)
        test->prepare();
    began = read_tsc();
    test->once();
    began = read_tsc() - began;
    return began > UINT32_MAX ? UINT32_MAX : (uint32_t)began;
}
