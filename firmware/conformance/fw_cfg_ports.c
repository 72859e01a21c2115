/* Ports and the selector: each width at each register, and what it does to selection and offset. */
#include "fw_cfg_suite.h"

enum access { IN8 = 1, IN16 = 2, IN32 = 4, OUT8 = 0x11, OUT16 = 0x12, OUT32 = 0x14 };

/*
 * One access with the signature selected and nothing of it read. How many bytes it consumed shows in the next byte:
 * 'Q' none, 'E' one, 'M' two.
 */
struct port_case {
    const char *name;
    enum access access;
    uint16_t port;
    uint32_t value; /* written, or wanted */
    uint32_t mask;  /* of the bits that an implementation has to agree on */
    char next;
};

static const struct port_case cases[] = {
    {"in8 0x511 gives the next byte", IN8, 0x511, 'Q', 0xff, 'E'},
    {"in8 0x510 is the data register, too", IN8, 0x510, 'Q', 0xff, 'E'},
    {"in16 0x510 gives 0 and consumes nothing", IN16, 0x510, 0, 0xffff, 'Q'},
    {"in32 0x510 gives 0 and consumes nothing", IN32, 0x510, 0, 0xffffffff, 'Q'},
    {"in8 0x512 is nobody's", IN8, 0x512, 0xff, 0xff, 'Q'},
    {"in8 0x513 is nobody's", IN8, 0x513, 0xff, 0xff, 'Q'},
    {"in8 0x51c is nobody's", IN8, 0x51c, 0xff, 0xff, 'Q'},
    {"out8 0x510 is ignored", OUT8, 0x510, 0x01, 0, 'Q'},
    {"out32 0x510 is not a select", OUT32, 0x510, FW_CFG_DIRECTORY, 0, 'Q'},
    {"out8 0x511 is ignored", OUT8, 0x511, 0x5a, 0, 'Q'},
    {"out16 0x511 is ignored", OUT16, 0x511, 0x19, 0, 'Q'},
    {"out8 0x512 is ignored", OUT8, 0x512, 0x19, 0, 'Q'},
};

/*
 * Accesses that reach over the end of a register. QEMU's accelerators differ: with KVM, and through qtest, they are
 * split; TCG refuses them as a whole (0, nothing consumed). Both pass, and the second is marked by a comment.
 */
static const struct port_case split_cases[] = {
    {"in16 0x511 gives one byte of data and one of nothing", IN16, 0x511, 0xff00 | 'Q', 0xffff, 'E'},
    {"in32 0x511 consumes one byte", IN32, 0x511, 'Q', 0xff, 'E'},
};

static const struct port_case split_dma_cases[] = {
    {"in32 0x516 gives the bytes in the middle", IN32, 0x516, 0x4320554d, 0xffffffff, 'Q'},
};

static const struct port_case dma_cases[] = {
    {"in32 0x514 gives the first half of the DMA signature", IN32, 0x514, 0x554d4551, 0xffffffff, 'Q'},
    {"in32 0x518 gives the second half", IN32, 0x518, 0x47464320, 0xffffffff, 'Q'},
    {"in16 0x516 gives two bytes of it", IN16, 0x516, 0x554d, 0xffff, 'Q'},
    {"in8 0x514 gives one byte of it", IN8, 0x514, 'Q', 0xff, 'Q'},
    {"in8 0x51b gives the last", IN8, 0x51b, 'G', 0xff, 'Q'},
};

static const struct port_case no_dma_cases[] = {
    {"in32 0x514 is nobody's without DMA", IN32, 0x514, 0xffffffff, 0xffffffff, 'Q'},
    {"in32 0x518 is nobody's without DMA", IN32, 0x518, 0xffffffff, 0xffffffff, 'Q'},
};

static uint32_t perform(const struct port_case *c)
{
    switch (c->access) {
    case IN8:
        return in8(c->port);
    case IN16:
        return in16(c->port);
    case IN32:
        return in32(c->port);
    case OUT8:
        out8(c->port, (uint8_t)c->value);
        break;
    case OUT16:
        out16(c->port, (uint16_t)c->value);
        break;
    case OUT32:
        out32(c->port, c->value);
        break;
    }
    return 0;
}

static void run(const struct port_case *table, size_t count, bool split)
{
    for (const struct port_case *c = table; c < table + count; c++) {
        uint32_t seen;
        uint8_t next;

        fw_cfg_select(FW_CFG_SIGNATURE);
        seen = perform(c);
        next = in8(FW_CFG_DATA);
        if (split && seen == 0 && next == 'Q') {
            tap_ok(true, c->name);
            print("#   " REFUSED_WHOLE);
        } else if (next != (uint8_t)c->next) {
            tap_equal(next, (uint8_t)c->next, c->name);
        } else {
            tap_equal(seen & c->mask, c->value & c->mask, c->name);
        }
    }
}

void test_ports(bool dma)
{
    run(cases, ARRAY_SIZE(cases), false);
    run(split_cases, ARRAY_SIZE(split_cases), true);
    if (dma) {
        run(dma_cases, ARRAY_SIZE(dma_cases), false);
        run(split_dma_cases, ARRAY_SIZE(split_dma_cases), true);
    } else {
        run(no_dma_cases, ARRAY_SIZE(no_dma_cases), false);
    }
}

static void expect_zeros(uint16_t key, const char *name)
{
    uint32_t any = 0;

    fw_cfg_select(key);
    for (int i = 0; i < 16; i++)
        any |= in8(FW_CFG_DATA);
    tap_equal(any, 0, name);
}

void test_selector(void)
{
    uint8_t bytes[8];
    uint32_t count = fw_cfg_read32(FW_CFG_DIRECTORY);
    uint32_t any = 0;

    fw_cfg_select(FW_CFG_SIGNATURE);
    (void)in8(FW_CFG_DATA);
    fw_cfg_select(FW_CFG_SIGNATURE);
    tap_equal(in8(FW_CFG_DATA), 'Q', "selecting the selected key goes back to its start");

    fw_cfg_select(FW_CFG_SIGNATURE);
    fw_cfg_read(bytes, sizeof(bytes));
    tap_bytes(bytes, "QEMU\0\0\0\0", 8, "reading past the end gives zeros");
    for (int i = 0; i < 4096; i++)
        any |= in8(FW_CFG_DATA);
    tap_equal(any, 0, "thousands of reads past the end give zeros");
    fw_cfg_select(FW_CFG_SIGNATURE);
    tap_equal(in8(FW_CFG_DATA), 'Q', "and the item is as before");

    tap_equal(fw_cfg_read32(0x4000 | FW_CFG_SIGNATURE), 0x554d4551, "bit 14 of the selector is ignored: 0x4000");
    tap_equal(fw_cfg_read32(0x4000 | FW_CFG_DIRECTORY), count, "bit 14 of the selector is ignored: 0x4019");
    expect_zeros(KEY_UNUSED, "a key without an item reads as zeros");
    expect_zeros(KEY_BEYOND, "a key beyond the directory reads as zeros");
    expect_zeros(0x8000 | KEY_BEYOND, "a key beyond the architecture's items reads as zeros");
    expect_zeros(0x8000 | FW_CFG_DIRECTORY, "bit 15 selects another table: 0x8019 is not the directory");
    expect_zeros(0xffff, "key 0xffff reads as zeros");
}
