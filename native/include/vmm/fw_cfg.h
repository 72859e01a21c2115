/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * QEMU's firmware configuration device on x86 ports 0x510-0x51b
 * (docs/specs/fw_cfg.rst in QEMU): a selector, a data port and a DMA register.
 *
 * Served entirely here: no allocation, no Python. Python builds the table of
 * items and keeps their buffers alive; it is called only for items that asked
 * to hear of selections or writes. All of it runs with the machine's io_lock
 * held; selector and offset are one state that all vCPUs share.
 *
 * What QEMU 7.2 was measured to do decides, except that
 *   - a DMA write whose source is not all readable leaves the item as it was
 *     (QEMU clobbers it), and
 *   - a reset also forgets the latched high half of the DMA address.
 */
#ifndef VMM_FW_CFG_H
#define VMM_FW_CFG_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/clock.h"
#include "vmm/guest_memory.h"
#include "vmm/io_table.h"
#include "vmm/trace.h"

#define FW_CFG_PORT_FIRST 0x510 /* selector */
#define FW_CFG_PORT_DATA 0x511
#define FW_CFG_PORT_DMA_HIGH 0x514 /* big-endian halves of a descriptor's address; the low one starts it */
#define FW_CFG_PORT_DMA_LOW 0x518
#define FW_CFG_PORT_LAST 0x51b

#define FW_CFG_SIGNATURE_KEY 0x0000
#define FW_CFG_ID_KEY 0x0001
#define FW_CFG_DIRECTORY_KEY 0x0019
#define FW_CFG_FIRST_FILE_KEY 0x0020
#define FW_CFG_WRITE_CHANNEL 0x4000 /* historical; ignored */
#define FW_CFG_ARCH_LOCAL 0x8000
#define FW_CFG_INDEX_MASK 0x3fff
#define FW_CFG_KEY_INVALID 0xffff

/* The control word of a DMA descriptor. */
#define FW_CFG_DMA_ERROR (1u << 0)
#define FW_CFG_DMA_READ (1u << 1)
#define FW_CFG_DMA_SKIP (1u << 2)
#define FW_CFG_DMA_SELECT (1u << 3)
#define FW_CFG_DMA_WRITE (1u << 4)

enum fw_cfg_item_flags {
    FW_CFG_WRITABLE = 1u << 0,      /* by DMA */
    FW_CFG_NOTIFY_SELECT = 1u << 1, /* tell Python before the first byte can be read */
    FW_CFG_NOTIFY_WRITE = 1u << 2,  /* tell Python after the bytes are stored */
};

/* One key. An item without data (NULL or length 0) is valid to select and reads as zeros. */
struct fw_cfg_item {
    uint8_t *data; /* stored to only if FW_CFG_WRITABLE */
    uint32_t length;
    uint32_t flags;
    /* Counters, accessed atomically. */
    uint64_t selects;
    uint64_t reads;      /* port accesses and DMA transfers that delivered item bytes */
    uint64_t bytes_read; /* of the item; zeros behind its end don't count */
    uint64_t writes;     /* DMA transfers that stored bytes */
    uint64_t ends;       /* how often its last byte was delivered */
    uint64_t first_ns;   /* when it was first selected, CLOCK_MONOTONIC; valid once `selects` is not 0 */
    uint64_t first_instructions; /* how many the guest had executed by then, of a clock that counts them */
};

enum fw_cfg_event {
    FW_CFG_EVENT_SELECT,
    FW_CFG_EVENT_WRITE,
};

/* Something happened to an item that asked for it; io_lock is held, as in every handler. */
typedef void fw_cfg_notify(void *opaque, uint32_t event, uint32_t key, uint32_t offset, uint32_t length);

struct fw_cfg {
    struct guest_memory *memory;
    const uint32_t *stop; /* nonzero: a stop of the machine is asked for */
    fw_cfg_notify *notify;
    void *opaque;
    struct trace *trace; /* NULL: not logged */
    const struct guest_clock *clock; /* counts the guest's instructions; NULL: nobody does */

    struct fw_cfg_item *items; /* by index: keys 0x0000 up */
    uint32_t item_count;
    struct fw_cfg_item *arch_items; /* by index: keys 0x8000 up */
    uint32_t arch_item_count;
    bool dma;

    struct fw_cfg_item *selected; /* NULL: an invalid key is selected */
    uint32_t key;                 /* as selected, or FW_CFG_KEY_INVALID */
    uint32_t offset;              /* at most the length of the selected item */
    uint64_t dma_address;         /* the high half that the next trigger uses */
};

/* Returns NULL without memory. */
struct fw_cfg *fw_cfg_new(struct guest_memory *memory, const uint32_t *stop, bool dma);
void fw_cfg_free(struct fw_cfg *fw_cfg);

/*
 * Hand over the table: arrays that outlive the device or the next call, which
 * is refused to vCPUs (io_lock is held or no vCPU runs). Selects key 0.
 */
void fw_cfg_publish(struct fw_cfg *fw_cfg, struct fw_cfg_item *items, uint32_t item_count,
                    struct fw_cfg_item *arch_items, uint32_t arch_item_count);

void fw_cfg_listen(struct fw_cfg *fw_cfg, fw_cfg_notify *notify, void *opaque);

/* Change what a published key holds; io_lock is held or no vCPU runs. False: there is no such key. */
bool fw_cfg_replace(struct fw_cfg *fw_cfg, uint32_t key, uint8_t *data, uint32_t length);

/* System reset: key 0 is selected, as if no register had been written. */
void fw_cfg_reset(struct fw_cfg *fw_cfg);

/* Registers as they were: a key as struct fw_cfg has it, an offset that the item may have become too short for. */
void fw_cfg_restore(struct fw_cfg *fw_cfg, uint32_t key, uint32_t offset, uint64_t dma_address);

/* The io_handler of ports FW_CFG_PORT_FIRST to FW_CFG_PORT_LAST; opaque is a struct fw_cfg. */
void fw_cfg_access(void *opaque, struct io_access *access);

#endif
