/* The parts of the fw_cfg conformance suite, and what they share. */
#ifndef FW_CFG_SUITE_H
#define FW_CFG_SUITE_H

#include "fw_cfg.h"
#include "tap.h"

/* A key below the first file that no machine uses, and one far beyond every directory. */
#define KEY_UNUSED 0x1f
#define KEY_BEYOND 0x3fff

/* An item that the user may add for a better test: 256 bytes, 00 01 02 .. ff. */
#define PATTERN_ITEM "opt/vmm/pattern"

/* What a buffer holds before a transfer that shall, or shall not, reach it. */
#define UNTOUCHED 0xa5

/* Comment on a case whose access reached over a register's end and had no effect (see fw_cfg_ports.c). */
#define REFUSED_WHOLE "refused as a whole, as under QEMU's TCG\n"

void test_ports(bool dma);
void test_strings(void);
void test_selector(void);
void test_keys(void);
void test_directory(void);
void test_e820(void);
void test_dma(void);

#endif
