/* String instructions at the ports: each is as many single accesses, in any direction, across any page. */
#include "fw_cfg_suite.h"

#define LONGEST 8192u

static uint8_t reference[LONGEST];
static uint8_t buffer[LONGEST + 4096] __attribute__((aligned(4096)));

static void in8_string_down(uint16_t port, uint8_t *last, uint32_t count)
{
    __asm__ volatile("std; rep insb; cld" : "+D"(last), "+c"(count) : "d"(port) : "memory");
}

static void in16_string(uint16_t port, void *to, uint32_t count)
{
    __asm__ volatile("rep insw" : "+D"(to), "+c"(count) : "d"(port) : "memory");
}

static void out8_string(uint16_t port, const void *from, uint32_t count)
{
    __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(port) : "memory");
}

static void out16_string(uint16_t port, const void *from, uint32_t count)
{
    __asm__ volatile("rep outsw" : "+S"(from), "+c"(count) : "d"(port) : "memory");
}

static void forward(uint16_t key, uint32_t count, const char *name)
{
    /* Odd, so that the buffer's pages end within the string. */
    uint8_t *start = buffer + 4093;

    if (count > LONGEST - 4096)
        start = buffer + 1;
    memset(buffer, UNTOUCHED, sizeof(buffer));
    fw_cfg_select(key);
    in8_string(FW_CFG_DATA, start, count);
    if (start[-1] != UNTOUCHED || start[count] != UNTOUCHED)
        tap_ok(false, name);
    else
        tap_bytes(start, reference, count, name);
}

static void backward(uint16_t key, uint32_t count, const char *name)
{
    memset(buffer, UNTOUCHED, sizeof(buffer));
    fw_cfg_select(key);
    in8_string_down(FW_CFG_DATA, buffer + count - 1, count);
    for (uint32_t i = 0; i < count / 2; i++) {
        uint8_t swapped = buffer[i];

        buffer[i] = buffer[count - 1 - i];
        buffer[count - 1 - i] = swapped;
    }
    tap_bytes(buffer, reference, count, name);
}

void test_strings(void)
{
    static const uint16_t selections[] = {FW_CFG_DIRECTORY, FW_CFG_ID, FW_CFG_SIGNATURE};
    struct fw_cfg_file file;
    /* The directory is the item that every implementation has; its end is followed by zeros. */
    uint16_t key = fw_cfg_find(PATTERN_ITEM, &file) ? file.key : FW_CFG_DIRECTORY;

    fw_cfg_select(key);
    for (uint32_t i = 0; i < LONGEST; i++)
        reference[i] = in8(FW_CFG_DATA);

    forward(key, 1, "rep insb of 1");
    forward(key, 3, "rep insb of 3, ending at a page");
    forward(key, 4, "rep insb of 4, across a page");
    forward(key, 1023, "rep insb of 1023");
    forward(key, 1024, "rep insb of 1024");
    forward(key, 1025, "rep insb of 1025");
    forward(key, 4096, "rep insb of 4096");
    forward(key, 8192, "rep insb of 8192");
    backward(key, 1, "rep insb of 1, backward");
    backward(key, 256, "rep insb of 256, backward");
    backward(key, 2500, "rep insb of 2500, backward");

    memset(buffer, UNTOUCHED, 16);
    fw_cfg_select(FW_CFG_SIGNATURE);
    in8_string(FW_CFG_DATA, buffer, 0);
    tap_ok(buffer[0] == UNTOUCHED && in8(FW_CFG_DATA) == 'Q', "rep insb of 0 does nothing");

    fw_cfg_select(FW_CFG_SIGNATURE);
    in8_string(FW_CFG_SELECTOR, buffer, 4);
    tap_bytes(buffer, "QEMU", 4, "rep insb at 0x510 reads data");

    fw_cfg_select(FW_CFG_SIGNATURE);
    in16_string(FW_CFG_DATA, buffer, 4);
    if (memcmp(buffer, "\0\0\0\0\0\0\0", 8) == 0 && in8(FW_CFG_DATA) == 'Q') {
        tap_ok(true, "rep insw at 0x511 is in16, repeated");
        print("#   " REFUSED_WHOLE);
    } else {
        tap_bytes(buffer, "Q\xff" "E\xff" "M\xff" "U\xff", 8, "rep insw at 0x511 is in16, repeated");
    }

    fw_cfg_select(FW_CFG_SIGNATURE);
    out8_string(FW_CFG_DATA, "xyz", 3);
    tap_equal(in8(FW_CFG_DATA), 'Q', "rep outsb at 0x511 is ignored");

    out16_string(FW_CFG_SELECTOR, selections, ARRAY_SIZE(selections));
    tap_equal(in8(FW_CFG_DATA), 'Q', "rep outsw at 0x510 selects each; the last stays");
}
