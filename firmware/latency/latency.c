/*
 * latency: what port I/O and fw_cfg's DMA cost, timed by the guest itself with RDTSC, in four modes of the processor.
 *
 * Each test is a loop of one instruction (modes.S). Its iterations are doubled until a batch takes the time goal; then
 * `samples` batches are timed and printed in TSC ticks. What the loop itself costs is the test `empty`, to be
 * subtracted. README.md in this directory's parent describes the options and the output.
 */
#include "exits.h"
#include "fw_cfg.h"
#include "latency.h"

/* Options: words in this item, see parse(). */
#define OPTIONS_ITEM "opt/vmm/latency"
/* Data to transfer; without it, the directory and the zeros behind it. */
#define BULK_ITEM "opt/vmm/bulk"

#define PORT_NOBODY 0x580 /* unassigned on every machine that we know */
#define PORT_RTC_INDEX 0x70
#define PORT_RTC_DATA 0x71
#define RTC_SCRATCH 0x5f /* CMOS RAM that no PC firmware gives a meaning */
#define PORT_PIC_MASK 0x21

#define LOG_SIZE 10000u
#define LOG_SAMPLES 2u /* each of them takes half a second where a byte is an exit to a slow VMM */

#define DMA_BUFFER 0x1000000u /* 16 MiB */
#define REAL_MODE_STRING_LIMIT 0x8000u
#define ITERATIONS_LIMIT (1u << 20)
#define SAMPLES_LIMIT 4096u

struct parameters {
    uint32_t iterations;
    uint32_t eax;
    uint32_t edx;
    uint32_t esi;
    uint32_t edi;
    uint32_t ebp;
    uint32_t ticks_low;
    uint32_t ticks_high;
    uint32_t routine;
    uint32_t esp;
    uint32_t reserved[2];
    struct fw_cfg_dma descriptor;
};

_Static_assert(offsetof(struct parameters, ticks_low) == P_TICKS - PARAMETERS, "latency.h");
_Static_assert(offsetof(struct parameters, routine) == P_ROUTINE - PARAMETERS, "latency.h");
_Static_assert(offsetof(struct parameters, esp) == P_ESP - PARAMETERS, "latency.h");
_Static_assert(offsetof(struct parameters, descriptor) == P_DESCRIPTOR - PARAMETERS, "latency.h");

/* Behind a variable that the compiler cannot see through: it takes small constant addresses for null pointers. */
static volatile struct parameters *parameters;

_Static_assert(LOG_SIZE % LOG_UNROLLED == 0, "what is printed is what is counted");

extern const uint8_t low_start[];
extern const uint8_t low_end[];
extern const uint32_t low_routines[OPERATIONS][3];
extern const uint8_t low_gdt_pointer[];
extern const uint8_t low_enter_real[];
extern const uint8_t low_enter_protected[];
extern const uint8_t low_enter_long[];
extern const uint8_t low_enter_user[];

static const struct mode {
    const char *name;
    const uint8_t *enter;
    uint8_t routines; /* column of low_routines */
} modes[MODES] = {
    [MODE_REAL] = {"real16", low_enter_real, 0},
    [MODE_PROTECTED] = {"protected32", low_enter_protected, 1},
    [MODE_LONG] = {"long64", low_enter_long, 2},
    [MODE_USER] = {"user64", low_enter_user, 2},
};

static const struct test {
    const char *name;
    uint8_t operation;
    uint16_t port;
    uint32_t value;
    uint32_t first_size; /* of a transfer, in bytes; then every fourfold up to the last */
    uint32_t last_size;
    bool needs_fw_cfg;
} tests[] = {
    {"empty", OP_EMPTY, 0, 0, 0, 0, false},
    {"in8-nobody", OP_IN8, PORT_NOBODY, 0, 0, 0, false},
    {"in16-nobody", OP_IN16, PORT_NOBODY, 0, 0, 0, false},
    {"in32-nobody", OP_IN32, PORT_NOBODY, 0, 0, 0, false},
    {"out8-nobody", OP_OUT8, PORT_NOBODY, 0, 0, 0, false},
    {"out16-nobody", OP_OUT16, PORT_NOBODY, 0, 0, 0, false},
    {"out32-nobody", OP_OUT32, PORT_NOBODY, 0, 0, 0, false},
    {"in8-fwcfg", OP_IN8, FW_CFG_DATA, 0, 0, 0, true},
    {"out16-select", OP_OUT16, FW_CFG_SELECTOR, FW_CFG_SIGNATURE, 0, 0, true},
    {"in8-rtc", OP_IN8, PORT_RTC_DATA, 0, 0, 0, false},
    {"out8-rtc", OP_OUT8, PORT_RTC_DATA, 0, 0, 0, false},
    {"in8-pic", OP_IN8, PORT_PIC_MASK, 0, 0, 0, false},
    {"out8-pic", OP_OUT8, PORT_PIC_MASK, 0xff, 0, 0, false},
    {"insb-up", OP_INS_UP, FW_CFG_DATA, 0, 16, 0x10000, true},
    {"insb-down", OP_INS_DOWN, FW_CFG_DATA, 0, 16, 0x10000, true},
    {"dma-read", OP_DMA, FW_CFG_DMA_LOW, 0, 16, 0x4000000, true},
    /* The last is measured only if it is asked for. */
    {"out8-log", OP_OUT8_LOG, DEBUGCON, '\n', LOG_SIZE, LOG_SIZE, false},
};

/* What may be chosen. */
static struct {
    uint32_t goal;    /* TSC ticks of a batch */
    uint32_t batch;   /* iterations of a batch; 0: by the goal */
    uint32_t samples; /* batches */
    uint32_t max_size;
    uint32_t modes; /* bit per mode; 0: all */
    uint32_t tests; /* bit per test; 0: all, if no exits either */
    uint32_t exits; /* bit per test of exits.h */
} options = {0, 0, 0, 0, 0, 0, 0};

static uint32_t samples[SAMPLES_LIMIT];
static char text[1024];
static uint16_t bulk_key;
static bool has_fw_cfg;
static bool has_dma;
static uint32_t ram_end;

static bool parse_number(const char *digits, uint32_t limit, uint32_t *value)
{
    uint32_t n = 0;

    if (!*digits)
        return false;
    for (; *digits; digits++) {
        if (*digits < '0' || *digits > '9' || n > limit / 10)
            return false;
        n = n * 10 + (uint32_t)(*digits - '0');
    }
    *value = n;
    return n <= limit;
}

static bool same(const char *a, const char *b)
{
    return strlen(a) == strlen(b) && memcmp(a, b, strlen(a)) == 0;
}

static bool parse_word(char *word)
{
    char *value = word;

    while (*value && *value != '=')
        value++;
    if (!*value)
        return false;
    *value++ = 0;
    if (same(word, "goal"))
        return parse_number(value, 1u << 30, &options.goal);
    if (same(word, "batch"))
        return parse_number(value, ITERATIONS_LIMIT, &options.batch);
    if (same(word, "samples"))
        return parse_number(value, SAMPLES_LIMIT, &options.samples);
    if (same(word, "max-size"))
        return parse_number(value, 1u << 30, &options.max_size);
    if (same(word, "mode"))
        for (uint32_t i = 0; i < MODES; i++)
            if (same(value, modes[i].name))
                return options.modes |= 1u << i, true;
    if (same(word, "test"))
        for (uint32_t i = 0; i < ARRAY_SIZE(tests); i++)
            if (same(value, tests[i].name))
                return options.tests |= 1u << i, true;
    if (same(word, "exit"))
        for (uint32_t i = 0; i < EXIT_TESTS; i++)
            if (same(value, exit_tests[i].name))
                return options.exits |= 1u << i, true;
    return false;
}

/* Words between blanks or newlines. False, with an error printed, for one that is not understood. */
static bool parse(char *words)
{
    while (*words) {
        char *word = words;
        bool last;

        while (*words && *words != ' ' && *words != '\n')
            words++;
        last = !*words;
        *words = 0;
        if (*word && !parse_word(word)) {
            print("error option %s\n", word);
            return false;
        }
        if (!last)
            words++;
    }
    return true;
}

static bool read_options(void)
{
    struct fw_cfg_file file;

    if (has_fw_cfg && fw_cfg_find(OPTIONS_ITEM, &file)) {
        if (file.size >= sizeof(text)) {
            print("error options have %u bytes; at most %u\n", file.size, (uint32_t)sizeof(text) - 1);
            return false;
        }
        fw_cfg_select(file.key);
        fw_cfg_read(text, file.size);
    }
    if (!parse(text))
        return false;
    options.goal = options.goal ? options.goal : 4000000;
    options.samples = options.samples ? options.samples : 15;
    options.max_size = options.max_size ? options.max_size : UINT32_MAX;
    options.modes = options.modes ? options.modes : UINT32_MAX;
    options.tests = options.tests || options.exits ? options.tests : (1u << (ARRAY_SIZE(tests) - 1)) - 1;
    return true;
}

/* Identity map of the first GiB, for every ring, in pages of 2 MiB. */
static void build_page_tables(void)
{
    const uint32_t present_writable_user = 7;
    const uint32_t large = 0x80;
    volatile uint64_t *tables = (volatile uint64_t *)PAGE_TABLES;

    memset((void *)tables, 0, 2 * 4096);
    tables[0] = (PAGE_TABLES + 4096) | present_writable_user;
    tables[512] = (PAGE_TABLES + 8192) | present_writable_user;
    for (uint32_t i = 0; i < 512; i++)
        tables[1024 + i] = i << 21 | large | present_writable_user;
}

/*
 * Intel SDM vol. 3A, 8.7 and vol. 1, 19.5.2. RSP0 is the stack on which ring 3's way out arrives. Every port is allowed
 * to ring 3: IOPL 3 would do, but KVM without hardware virtualization was seen to lose it.
 */
static void build_task_state(void)
{
    volatile uint32_t *rsp0 = (volatile uint32_t *)(TSS + 4);
    volatile uint16_t *bitmap_offset = (volatile uint16_t *)(TSS + 102);

    memset((void *)TSS, 0, TSS_SIZE);
    *rsp0 = LOW_CODE_LIMIT;
    *bitmap_offset = TSS_FIXED_SIZE;
    *(volatile uint8_t *)(TSS + TSS_SIZE - 1) = 0xff;
}

static uint32_t low_address(const uint8_t *symbol)
{
    return LOW_CODE + (uint32_t)(symbol - low_start);
}

static uint32_t run_batch(const struct mode *mode, const struct test *test, uint32_t size, uint32_t iterations)
{
    if (test->needs_fw_cfg)
        fw_cfg_select(bulk_key);
    if (test->port == PORT_RTC_DATA)
        out8(PORT_RTC_INDEX, RTC_SCRATCH);
    parameters->iterations = test->operation == OP_OUT8_LOG ? iterations * (size / LOG_UNROLLED) : iterations;
    parameters->eax = test->value;
    parameters->edx = test->port;
    parameters->esi = size;
    parameters->edi = 0;
    parameters->ebp = mode == &modes[MODE_REAL] ? 0 : STRING_BUFFER;
    if (test->operation == OP_INS_DOWN)
        parameters->ebp += size - 1;
    if (test->operation == OP_DMA) {
        parameters->eax = __builtin_bswap32(P_DESCRIPTOR);
        parameters->esi = __builtin_bswap32(FW_CFG_DMA_KEY(bulk_key) | FW_CFG_DMA_READ);
        parameters->edi = P_DESCRIPTOR;
        parameters->descriptor.length = __builtin_bswap32(size);
        parameters->descriptor.address_high = 0;
        parameters->descriptor.address_low = __builtin_bswap32(DMA_BUFFER);
    }
    parameters->routine = LOW_CODE + low_routines[test->operation][mode->routines];
    ((void (*)(void))low_address(mode->enter))();
    return parameters->ticks_high ? UINT32_MAX : parameters->ticks_low;
}

static uint32_t choose_batch(const struct mode *mode, const struct test *test, uint32_t size)
{
    uint32_t iterations = 1;

    if (options.batch)
        return options.batch;
    for (; iterations < ITERATIONS_LIMIT; iterations *= 2) {
        uint32_t first = run_batch(mode, test, size, iterations);
        uint32_t second = run_batch(mode, test, size, iterations);

        /* The first one may be cold, and either may have been disturbed. */
        if ((first < second ? first : second) >= options.goal)
            break;
    }
    return iterations;
}

static void measure(const struct mode *mode, const struct test *test, uint32_t size)
{
    uint32_t iterations = choose_batch(mode, test, size);
    uint32_t count = test->port == DEBUGCON && options.samples > LOG_SAMPLES ? LOG_SAMPLES : options.samples;

    for (uint32_t i = 0; i < count; i++)
        samples[i] = run_batch(mode, test, size, iterations);
    if (test->operation == OP_DMA && parameters->descriptor.control != 0) {
        print("error %s %s: the transfer failed\n", mode->name, test->name);
        return;
    }
    print("result %s %s %u %u", mode->name, test->name, size, iterations);
    for (uint32_t i = 0; i < count; i++)
        print(" %u", samples[i]);
    print("\n");
}

static const char *unable(const struct mode *mode, const struct test *test, uint32_t size)
{
    if (test->needs_fw_cfg && !has_fw_cfg)
        return "no fw_cfg";
    if (test->port == DEBUGCON && in8(DEBUGCON) != DEBUGCON_ANSWER)
        return "no debug port";
    if (test->operation == OP_DMA && !has_dma)
        return "no DMA";
    if (test->operation == OP_DMA && ram_end - DMA_BUFFER < size)
        return "not enough RAM";
    if (mode == &modes[MODE_REAL] && size > REAL_MODE_STRING_LIMIT && test->operation != OP_DMA)
        return "beyond a segment";
    return 0;
}

static void measure_sizes(const struct mode *mode, const struct test *test)
{
    uint32_t size = test->first_size;

    do {
        const char *why = unable(mode, test, size);

        if (why)
            print("skip %s %s %u %s\n", mode->name, test->name, size, why);
        else
            measure(mode, test, size);
        size *= 4;
        if (size > test->last_size && size < test->last_size * 4)
            size = test->last_size;
    } while (size && size <= test->last_size && size <= options.max_size);
}

static void measure_exit(const struct exit_test *test)
{
    const char *why = exits_unable(test);

    if (why) {
        print("skip %s %s 0 %s\n", modes[MODE_PROTECTED].name, test->name, why);
        return;
    }
    for (uint32_t i = 0; i < options.samples; i++)
        samples[i] = exits_time(test);
    print("result %s %s 0 1", modes[MODE_PROTECTED].name, test->name);
    for (uint32_t i = 0; i < options.samples; i++)
        print(" %u", samples[i]);
    print("\n");
}

/* TSC ticks a millisecond, by the ACPI PM timer (3.579545 MHz); 0 where there is none. */
static uint32_t tsc_khz(uint16_t timer)
{
    const uint32_t wanted = 35795; /* 10 ms */
    uint32_t first = timer ? in32(timer) & 0xffffff : 0;
    uint64_t start = read_tsc();
    uint32_t passed = 0;
    uint32_t ticks;
    uint32_t quotient;
    uint32_t high;

    if (!timer)
        return 0;
    while (passed < wanted && read_tsc() - start < 1u << 30)
        passed = (in32(timer) - first) & 0xffffff;
    ticks = (uint32_t)(read_tsc() - start);
    if (passed < wanted)
        return 0;
    /* Without the compiler's 64-bit division, which is a library's. */
    __asm__("mull %4; divl %5" : "=&a"(quotient), "=&d"(high) : "0"(ticks), "1"(0), "rm"(PM_TIMER_HZ), "rm"(passed * 1000));
    return quotient;
}

static uint32_t end(uint32_t status)
{
    print("end %u\n", status);
    return status;
}

uint32_t main(void);
uint32_t main(void)
{
    char signature[5];
    struct fw_cfg_file file;
    uint32_t bulk_size = 0;

    console_init();
    print("vmm latency 1\n");
    has_fw_cfg = interface_detect(signature) == INTERFACE_FW_CFG;
    has_dma = has_fw_cfg && (fw_cfg_read32(FW_CFG_ID) & FW_CFG_ID_DMA);
    bulk_key = FW_CFG_DIRECTORY;
    if (has_fw_cfg && fw_cfg_find(BULK_ITEM, &file)) {
        bulk_key = file.key;
        bulk_size = file.size;
    }
    if (!read_options())
        return end(1);
    ram_end = has_fw_cfg ? fw_cfg_low_ram_end() : 0;
    ram_end = ram_end > DMA_BUFFER ? ram_end : DMA_BUFFER;
    print("machine %s\ntsc-khz %u\nbulk %u\n", platform_name(platform_detect()), tsc_khz(power_timer_port()), bulk_size);

    __asm__("" : "=r"(parameters) : "0"(PARAMETERS));
    memcpy((void *)LOW_CODE, low_start, (size_t)(low_end - low_start));
    build_page_tables();
    build_task_state();
    __asm__ volatile("lgdt (%0)" : : "r"(low_address(low_gdt_pointer)));
    for (uint32_t m = 0; m < MODES; m++)
        for (uint32_t t = 0; t < ARRAY_SIZE(tests); t++)
            if (options.modes >> m & options.tests >> t & 1)
                measure_sizes(&modes[m], &tests[t]);
    if (options.exits)
        exits_init(has_fw_cfg ? fw_cfg_read16(FW_CFG_CPUS) : 1, DMA_BUFFER, ram_end);
    for (uint32_t t = 0; t < EXIT_TESTS; t++)
        if (options.exits >> t & 1)
            measure_exit(&exit_tests[t]);
    return end(0);
}
