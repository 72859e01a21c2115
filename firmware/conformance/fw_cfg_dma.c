/*
 * The DMA interface: what the control word says afterwards, which bytes moved, and where the item's offset is.
 *
 * Most cases work on the signature, "QEMU": four bytes, read-only, there on every machine.
 */
#include "fw_cfg_suite.h"

#define READ FW_CFG_DMA_READ
#define SKIP FW_CFG_DMA_SKIP
#define WRITE FW_CFG_DMA_WRITE
#define ERROR FW_CFG_DMA_ERROR
#define SIGNATURE FW_CFG_DMA_KEY(FW_CFG_SIGNATURE)

#define BUFFER_SIZE 64

static uint8_t buffer[BUFFER_SIZE];
static uint8_t large[0x20000];

/* A step from a known state: the signature selected by port and `before` bytes of it read. */
struct dma_case {
    const char *name;
    uint8_t before;
    uint32_t control;
    uint32_t length;
    uint32_t result;
    const char *arrived; /* the buffer's first 8 bytes afterwards; '.' for a byte left alone; null: all left alone */
    char next;           /* by port afterwards; 0 past the end */
};

static const struct dma_case cases[] = {
    {"DMA read of an item", 0, SIGNATURE | READ, 4, 0, "QEMU....", 0},
    {"DMA read goes on where the port stopped", 1, READ, 2, 0, "EM......", 'U'},
    {"DMA select goes back to the start", 3, SIGNATURE | READ, 1, 0, "Q.......", 'E'},
    {"DMA read beyond the end fills with zeros", 0, SIGNATURE | READ, 7, 0, "QEMU\0\0\0.", 0},
    {"DMA read past the end gives zeros", 4, READ, 3, 0, "\0\0\0.....", 0},
    {"DMA read of 0 bytes does nothing", 1, READ, 0, 0, 0, 'E'},
    {"DMA skip", 0, SIGNATURE | SKIP, 2, 0, 0, 'M'},
    {"DMA skip goes on where the port stopped", 1, SKIP, 1, 0, 0, 'M'},
    {"DMA skip past the end is no error", 0, SIGNATURE | SKIP, 100, 0, 0, 0},
    {"DMA skip of 2^32-1 is no error", 1, SKIP, 0xffffffff, 0, 0, 0},
    {"DMA select alone", 2, SIGNATURE, 4, 0, 0, 'Q'},
    {"DMA with control 0 does nothing", 2, 0, 4, 0, 0, 'M'},
    {"DMA read goes before skip", 0, SIGNATURE | READ | SKIP, 2, 0, "QE......", 'M'},
    {"DMA read goes before write", 0, SIGNATURE | READ | WRITE, 2, 0, "QE......", 'M'},
    {"DMA write goes before skip", 0, SIGNATURE | WRITE | SKIP, 2, ERROR, 0, 'M'},
    {"DMA write to a read-only item fails and still advances", 1, WRITE, 2, ERROR, 0, 'U'},
    {"DMA write of 0 bytes does nothing", 1, WRITE, 0, 0, 0, 'E'},
    {"DMA error bit is ignored on the way in", 0, SIGNATURE | READ | ERROR, 4, 0, "QEMU....", 0},
    {"DMA control's bits 5 to 15 are ignored", 0, SIGNATURE | READ | 0xffe0, 4, 0, "QEMU....", 0},
    {"DMA key's bit 14 is ignored", 2, SIGNATURE | READ | 0x4000u << 16, 4, 0, "QEMU....", 0},
    {"DMA key without select is ignored", 1, READ | FW_CFG_DIRECTORY << 16, 2, 0, "EM......", 'U'},
    {"DMA read of a key without an item gives zeros", 0, FW_CFG_DMA_KEY(KEY_UNUSED) | READ, 3, 0, "\0\0\0.....", 0},
    {"DMA read of a key beyond all gives zeros", 0, FW_CFG_DMA_KEY(KEY_BEYOND) | READ, 3, 0, "\0\0\0.....", 0},
    {"DMA skip in a key beyond all is no error", 0, FW_CFG_DMA_KEY(KEY_BEYOND) | SKIP, 3, 0, 0, 0},
    {"DMA write to a key without an item fails", 0, FW_CFG_DMA_KEY(KEY_UNUSED) | WRITE, 1, ERROR, 0, 0},
    {"DMA write to a key beyond all fails", 0, FW_CFG_DMA_KEY(KEY_BEYOND) | WRITE, 1, ERROR, 0, 0},
    {"DMA write at the end fails", 4, WRITE, 1, ERROR, 0, 0},
};

static void run_case(const struct dma_case *c)
{
    uint8_t wanted[8];
    uint32_t result;
    uint8_t next;

    memset(buffer, UNTOUCHED, sizeof(buffer));
    for (int i = 0; i < 8; i++)
        wanted[i] = c->arrived && c->arrived[i] != '.' ? (uint8_t)c->arrived[i] : UNTOUCHED;
    fw_cfg_select(FW_CFG_SIGNATURE);
    for (int i = 0; i < c->before; i++)
        (void)in8(FW_CFG_DATA);
    result = fw_cfg_dma(c->control, c->length, (uint32_t)buffer);
    next = in8(FW_CFG_DATA);
    if (result != c->result)
        tap_equal(result, c->result, c->name);
    else if (next != (uint8_t)c->next)
        tap_equal(next, (uint8_t)c->next, c->name);
    else
        tap_bytes(buffer, wanted, sizeof(wanted), c->name);
}

/* Like fw_cfg_dma(), with the descriptor where the caller wants it and all of its 64-bit address. */
static uint32_t dma_at(volatile struct fw_cfg_dma *descriptor, uint32_t control, uint32_t length, uint64_t address)
{
    descriptor->control = __builtin_bswap32(control);
    descriptor->length = __builtin_bswap32(length);
    descriptor->address_high = __builtin_bswap32((uint32_t)(address >> 32));
    descriptor->address_low = __builtin_bswap32((uint32_t)address);
    out32(FW_CFG_DMA_LOW, __builtin_bswap32((uint32_t)descriptor));
    return __builtin_bswap32(descriptor->control);
}

/* A read of the signature to an address that is not RAM; the offset goes on all the same. */
static void expect_no_destination(uint64_t address, const char *name)
{
    struct fw_cfg_dma descriptor;
    uint32_t result = dma_at(&descriptor, SIGNATURE | READ, 2, address);
    uint8_t next = in8(FW_CFG_DATA);

    if (result != ERROR)
        tap_equal(result, ERROR, name);
    else
        tap_equal(next, 'M', name);
}

static void test_addresses(void)
{
    extern const uint8_t reset_vector[];
    uint8_t code[16];
    uint32_t end = fw_cfg_low_ram_end();
    uint8_t *tail;

    expect_no_destination(0xf000000000ull, "DMA read to no memory fails and still advances");
    expect_no_destination(0xfffffffffffffffeull, "DMA read to the last two bytes of all addresses fails");
    tap_equal(dma_at((void *)large, SIGNATURE | READ, 32, 0xfffffffffffffff0ull), ERROR,
              "DMA read to addresses that wrap fails");
    memcpy(code, reset_vector, sizeof(code));
    tap_equal(dma_at((void *)large, SIGNATURE | READ, 16, (uint32_t)reset_vector), ERROR, "DMA read to ROM fails");
    tap_bytes(reset_vector, code, sizeof(code), "and leaves the ROM as it was");
    tap_equal(dma_at((void *)large, SIGNATURE | WRITE, 2, 0xf000000000ull), ERROR, "DMA write from no memory fails");
    fw_cfg_select(FW_CFG_SIGNATURE);
    fw_cfg_read(buffer, 4);
    tap_bytes(buffer, "QEMU", 4, "and leaves a read-only item as it was");
    if (!end) {
        tap_skip("DMA at the end of RAM", "etc/e820 does not say where that is");
        return;
    }
    tail = (uint8_t *)(end - 2);
    memset(tail, UNTOUCHED, 2);
    tap_equal(dma_at((void *)large, SIGNATURE | READ, 4, end - 2), ERROR, "DMA read across the end of RAM fails");
    tap_bytes(tail, "QE", 2, "and what is RAM got its bytes");
    memset(buffer, UNTOUCHED, 4);
    tap_equal(dma_at((void *)(end - 16), SIGNATURE | READ, 4, (uint32_t)buffer), 0,
              "DMA descriptor in the last 16 bytes of RAM");
    tap_bytes(buffer, "QEMU", 4, "and its data arrived");
    fw_cfg_select(FW_CFG_SIGNATURE);
    (void)in8(FW_CFG_DATA);
    memset((void *)(end - 8), 0, 8);
    out32(FW_CFG_DMA_LOW, __builtin_bswap32(end - 8));
    tap_equal(in8(FW_CFG_DATA), 'E', "DMA descriptor across the end of RAM changes no selection");
}

static void test_descriptor(void)
{
    struct fw_cfg_dma *odd = (void *)(large + 0x1003);
    struct fw_cfg_dma before;
    bool all = true;

    memset(buffer, UNTOUCHED, sizeof(buffer));
    tap_equal(dma_at(odd, SIGNATURE | READ, 4, (uint32_t)buffer + 1), 0, "DMA descriptor and data at odd addresses");
    tap_bytes(buffer, "\xa5QEMU\xa5", 6, "and the data arrived");
    before.length = __builtin_bswap32(4);
    before.address_high = 0;
    before.address_low = __builtin_bswap32((uint32_t)buffer + 1);
    tap_bytes(&odd->length, &before.length, 12, "the descriptor's length and address stay");

    for (uint32_t place = 0xff0; place <= 0x1000; place += 2) {
        memset(buffer, UNTOUCHED, 4);
        all &= dma_at((void *)(large + place), SIGNATURE | READ, 4, (uint32_t)buffer) == 0;
        all &= memcmp(buffer, "QEMU", 4) == 0;
    }
    tap_ok(all, "DMA descriptors across a page");
}

/* Whether a DMA read of the signature's first byte, its descriptor made ready, was left undone by `access`. */
static volatile struct fw_cfg_dma ready;

static void make_ready(void)
{
    ready.control = __builtin_bswap32(SIGNATURE | READ);
    ready.length = __builtin_bswap32(4);
    ready.address_high = 0;
    ready.address_low = __builtin_bswap32((uint32_t)buffer);
}

static void expect_idle(const char *name)
{
    tap_equal(__builtin_bswap32(ready.control), SIGNATURE | READ, name);
}

static void test_registers(void)
{
    uint32_t low = __builtin_bswap32((uint32_t)&ready);

    make_ready();
    out16(FW_CFG_DMA_LOW, (uint16_t)low);
    out16(FW_CFG_DMA_LOW + 2, (uint16_t)(low >> 16));
    expect_idle("two out16 at 0x518 start nothing");
    for (uint16_t i = 0; i < 4; i++)
        out8(FW_CFG_DMA_LOW + i, (uint8_t)(low >> 8 * i));
    expect_idle("four out8 at 0x518 start nothing");
    out32(FW_CFG_DMA_HIGH + 1, low);
    out32(FW_CFG_DMA_HIGH + 2, low);
    expect_idle("a misaligned out32 starts nothing");
    out16(FW_CFG_DMA_HIGH, 0xffff);
    out8(FW_CFG_DMA_HIGH + 3, 0xff);
    out32(FW_CFG_DMA_LOW, low);
    tap_equal(ready.control, 0, "and none of them changed the address register");

    make_ready();
    out32(FW_CFG_DMA_HIGH, 0);
    expect_idle("out32 at 0x514 starts nothing");
    tap_equal(in32(FW_CFG_DMA_HIGH), 0x554d4551, "0x514 still reads as the signature");
    out32(FW_CFG_DMA_LOW, low);
    tap_equal(ready.control, 0, "out32 at 0x518 starts the transfer");

    make_ready();
    fw_cfg_select(FW_CFG_SIGNATURE);
    (void)in8(FW_CFG_DATA);
    out32(FW_CFG_DMA_HIGH, __builtin_bswap32(0xf0));
    out32(FW_CFG_DMA_LOW, low);
    expect_idle("with a high half, the descriptor is there and nowhere else");
    tap_equal(in8(FW_CFG_DATA), 'E', "a descriptor that cannot be read changes no selection");
    out32(FW_CFG_DMA_LOW, low);
    tap_equal(ready.control, 0, "the high half is gone with the operation");
}

/* Every small item: by DMA in one piece, by DMA in odd pieces, and by port. */
static void test_items_by_both_ways(void)
{
    uint32_t half = sizeof(large) / 2;
    uint32_t count = fw_cfg_directory();
    bool whole = true;
    bool pieces = true;

    for (uint32_t i = 0; i < count; i++) {
        struct fw_cfg_file file;
        uint32_t size;

        /* The inner accesses move the selection. */
        fw_cfg_dma(FW_CFG_DMA_KEY(FW_CFG_DIRECTORY) | SKIP, 4 + i * sizeof(file), 0);
        fw_cfg_next(&file);
        size = file.size < 4096 ? file.size : 4096;
        fw_cfg_select(file.key);
        fw_cfg_read(large, size);
        memset(large + half, UNTOUCHED, size);
        whole &= fw_cfg_dma(FW_CFG_DMA_KEY(file.key) | READ, size, (uint32_t)large + half) == 0;
        whole &= memcmp(large, large + half, size) == 0;
        memset(large + half, UNTOUCHED, size);
        fw_cfg_select(file.key);
        for (uint32_t at = 0; at < size; at += 129) {
            uint32_t piece = size - at < 129 ? size - at : 129;

            pieces &= fw_cfg_dma(READ, piece, (uint32_t)large + half + at) == 0;
        }
        pieces &= memcmp(large, large + half, size) == 0;
        if (!whole || !pieces) {
            print("# %s differs\n", file.name);
            break;
        }
    }
    tap_ok(whole, "DMA reads give what the port gives, for every file");
    tap_ok(pieces, "and so do DMA reads in pieces");
    memset(large, UNTOUCHED, sizeof(large));
    tap_equal(fw_cfg_dma(SIGNATURE | READ, sizeof(large), (uint32_t)large), 0, "DMA read of 128 KiB of a small item");
    tap_bytes(large, "QEMU", 4, "begins with the item");
    whole = true;
    for (uint32_t i = 4; i < sizeof(large); i += sizeof(uint32_t))
        whole &= *(uint32_t *)(large + i) == 0;
    tap_ok(whole, "and goes on with zeros");
}

/* QEMU's vmcoreinfo device: u16 host format, u16 guest format, u32 size, u64 address, little-endian, writable. */
static void test_writable(void)
{
    static const uint8_t note[16] = {0, 0, 1, 0, 0, 0, 0x10, 0, 0, 0xff, 0xff, 0xff, 0, 0, 0, 0};
    struct fw_cfg_file file;
    uint8_t before[16];

    if (!fw_cfg_find("etc/vmcoreinfo", &file)) {
        tap_skip("DMA write to a writable item", "no etc/vmcoreinfo");
        return;
    }
    fw_cfg_select(file.key);
    fw_cfg_read(before, sizeof(before));
    tap_equal(fw_cfg_dma(FW_CFG_DMA_KEY(file.key) | WRITE, 17, (uint32_t)large), ERROR,
              "DMA write that would cross the item's end fails");
    fw_cfg_select(file.key);
    fw_cfg_read(buffer, 16);
    tap_bytes(buffer, before, 16, "and writes nothing");
    memcpy(large, note, sizeof(note));
    tap_equal(fw_cfg_dma(FW_CFG_DMA_KEY(file.key) | WRITE, 16, (uint32_t)large), 0, "DMA write of a whole item");
    tap_equal(in8(FW_CFG_DATA), 0, "leaves the offset at its end");
    fw_cfg_select(file.key);
    fw_cfg_read(buffer, 16);
    tap_bytes(buffer, note, 16, "and reads back");
}

void test_dma(void)
{
    for (const struct dma_case *c = cases; c < cases + ARRAY_SIZE(cases); c++)
        run_case(c);
    test_descriptor();
    test_registers();
    test_addresses();
    test_items_by_both_ways();
    test_writable();
}
