/*
 * The guest's half of fw_cfg (QEMU, docs/specs/fw_cfg.rst) and of fwctl (bhyve, usr.sbin/bhyve/amd64/fwctl.c), which
 * share their ports.
 */
#ifndef FW_CFG_H
#define FW_CFG_H

#include "guest.h"

#define FW_CFG_SELECTOR 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_DMA_HIGH 0x514
#define FW_CFG_DMA_LOW 0x518

#define FW_CFG_SIGNATURE 0x00
#define FW_CFG_ID 0x01
#define FW_CFG_UUID 0x02
#define FW_CFG_RAM_SIZE 0x03
#define FW_CFG_CPUS 0x05
#define FW_CFG_MAX_CPUS 0x0f
#define FW_CFG_DIRECTORY 0x19
#define FW_CFG_FIRST_FILE 0x20

#define FW_CFG_ID_PORT 1u
#define FW_CFG_ID_DMA 2u

#define FW_CFG_DMA_ERROR 0x01u
#define FW_CFG_DMA_READ 0x02u
#define FW_CFG_DMA_SKIP 0x04u
#define FW_CFG_DMA_SELECT 0x08u
#define FW_CFG_DMA_WRITE 0x10u
#define FW_CFG_DMA_KEY(key) ((uint32_t)(key) << 16 | FW_CFG_DMA_SELECT)

/* In memory, all big-endian. */
struct fw_cfg_dma {
    uint32_t control;
    uint32_t length;
    uint32_t address_high;
    uint32_t address_low;
};

struct fw_cfg_file {
    uint32_t size;
    uint16_t key;
    uint16_t reserved;
    char name[56];
};

enum interface { INTERFACE_NONE, INTERFACE_FW_CFG, INTERFACE_FWCTL };

/* Which of the two answers; fwctl is left ready for requests. `signature` gets what was read: four bytes and a NUL. */
enum interface interface_detect(char signature[5]);

void fw_cfg_select(uint16_t key);
void fw_cfg_read(void *buffer, uint32_t size);
uint16_t fw_cfg_read16(uint16_t key);
uint32_t fw_cfg_read32(uint16_t key);

/* One descriptor's worth of DMA, its fields in native order. Returns the control word that the device wrote back. */
uint32_t fw_cfg_dma(uint32_t control, uint32_t length, uint32_t address);

/* Looks NAME up in the directory. Leaves `file` in native byte order. */
bool fw_cfg_find(const char *name, struct fw_cfg_file *file);

/* The number of entries; the next fw_cfg_next() calls return them in order. No other access may come between. */
uint32_t fw_cfg_directory(void);
void fw_cfg_next(struct fw_cfg_file *file);

/* An entry of etc/e820, little-endian, packed. */
struct fw_cfg_e820 {
    uint32_t base_low;
    uint32_t base_high;
    uint32_t length_low;
    uint32_t length_high;
    uint32_t type;
};

#define FW_CFG_E820_RAM 1

/* The end of the RAM that begins at 0, from etc/e820; 0 if that says nothing, or if it is at 4 GiB or above. */
uint32_t fw_cfg_low_ram_end(void);

#define FWCTL_GET 3
#define FWCTL_GET_LEN 4
#define FWCTL_NOT_FOUND 2

/*
 * Asks fwctl for the 32-bit value of an OID. Returns the response's error field; 0 is success. A response that breaks
 * the framing gives FWCTL_BROKEN.
 */
#define FWCTL_BROKEN 0xffffffffu
uint32_t fwctl_get32(const char *oid, uint32_t *value);

#endif
