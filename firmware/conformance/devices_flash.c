/*
 * See devices_suite.h. This file: CFI flash with Intel's command set (JESD68), if the chip below this guest's own image
 * is one. Its last sector is used, and left erased.
 */
#include "devices_suite.h"

#define SECTOR 0x1000u
#define IMAGE 0xffff0000u
#define FLASH (IMAGE - SECTOR)

#define PROGRAM 0x10
#define ERASE 0x20
#define CONFIRM 0xd0
#define CLEAR_STATUS 0x50
#define READ_STATUS 0x70
#define READ_CFI 0x98
#define BUFFERED 0xe8
#define READ_ARRAY 0xff
#define READY 0x80

/*
 * Edk2's probe: neither RAM, which would show the command, nor ROM, which would show its contents. Nor nothing at all,
 * which gives 0 on some machines, as the cleared status does.
 */
static bool is_flash(void)
{
    uint8_t contents = load8(FLASH + 0x10);
    uint8_t status;
    uint8_t query;

    store8(FLASH + 0x10, CLEAR_STATUS);
    if (load8(FLASH + 0x10) != contents)
        return false;
    store8(FLASH + 0x10, READ_STATUS);
    status = load8(FLASH + 0x10);
    store8(FLASH + 0x55, READ_CFI);
    query = load8(FLASH + 0x10);
    store8(FLASH + 0x10, READ_ARRAY);
    return status == 0 && query == 'Q';
}

static void program(uint32_t at, uint8_t value)
{
    store8(FLASH + at, PROGRAM);
    store8(FLASH + at, value);
}

static void erase(void)
{
    store8(FLASH, ERASE);
    store8(FLASH, CONFIRM);
}

void suite_flash(void)
{
    bool equal = true;

    if (!is_flash()) {
        tap_skip("flash", "there is none below the image");
        return;
    }
    erase();
    tap_equal(load8(FLASH) & READY, READY, "flash: ready after an erase");
    store8(FLASH, READ_ARRAY);
    tap_ok(load32(FLASH) == 0xffffffffu && load32(FLASH + SECTOR - 4) == 0xffffffffu, "flash: erased to ones");
    for (uint32_t i = 0; i < 256; i++)
        program(i, (uint8_t)(i ^ 0xa5));
    tap_equal(load8(FLASH + 7), READY, "flash: status, not contents, until told otherwise");
    store8(FLASH, READ_ARRAY);
    for (uint32_t i = 0; i < 256; i++)
        equal = equal && load8(FLASH + i) == (uint8_t)(i ^ 0xa5);
    tap_ok(equal, "flash: programmed byte by byte");
    store32(FLASH + 0x200, 0x12345600u | READ_ARRAY);
    tap_equal(load32(FLASH + 0x200), 0xffffffffu, "flash: a store that is no command changes nothing");
    store8(FLASH + 0x55, READ_CFI);
    tap_ok(load8(FLASH + 0x10) == 'Q' && load8(FLASH + 0x11) == 'R' && load8(FLASH + 0x12) == 'Y', "flash: CFI query");
    store8(FLASH, READ_ARRAY);
    store8(FLASH + 0x300, BUFFERED);
    store8(FLASH + 0x300, 3);
    for (uint32_t i = 0; i < 4; i++)
        store8(FLASH + 0x300 + i, (uint8_t)(0x11 * (i + 1)));
    store8(FLASH + 0x300, CONFIRM);
    tap_equal(load8(FLASH) & READY, READY, "flash: ready after a buffered program");
    store8(FLASH, READ_ARRAY);
    tap_equal(load32(FLASH + 0x300), 0x44332211u, "flash: programmed through the buffer");
    erase();
    store8(FLASH, READ_ARRAY);
}
