/*
 * conformance-fw-cfg: what a guest can see of fw_cfg, case by case, as TAP on the console.
 *
 * Expectations are what QEMU 7.2 does; QEMU's docs/specs/fw_cfg.rst leaves most odd accesses open. A VMM whose guests
 * are to find what they find on QEMU passes all of it. Some cases need something from the command line and are skipped
 * without it: PATTERN_ITEM (fw_cfg_suite.h), a writable etc/vmcoreinfo.
 */
#include "fw_cfg_suite.h"

/* Registers that the reset left: nothing may touch the selector before this ran. */
static void test_reset_state(void)
{
    uint8_t first[4];

    for (int i = 0; i < 4; i++)
        first[i] = in8(FW_CFG_DATA);
    tap_bytes(first, "QEMU", 4, "reset: the first four reads give the signature, with nothing selected");
}

uint32_t main(void);
uint32_t main(void)
{
    char signature[5];
    bool dma;

    console_init();
    tap_begin("fw_cfg");
    test_reset_state();
    if (interface_detect(signature) != INTERFACE_FW_CFG) {
        tap_bail_out("fw_cfg does not answer");
        return tap_end();
    }
    dma = fw_cfg_read32(FW_CFG_ID) & FW_CFG_ID_DMA;
    test_selector();
    test_ports(dma);
    test_strings();
    test_keys();
    test_directory();
    test_e820();
    if (dma)
        test_dma();
    else
        tap_skip("DMA", "not offered (bit 1 of the id)");
    return tap_end();
}
