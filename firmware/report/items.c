/* fw_cfg items, read again by a client that shares nothing with firmware's. See report.h. */
#include "report.h"

static uint8_t piece[0x4000];

/* The device's selection is lost whenever the stream goes to the host, so each piece is found anew. */
static void read_piece(uint16_t key, uint32_t offset, uint32_t size, bool dma)
{
    if (dma) {
        client_dma(FW_CFG_DMA_KEY(key) | FW_CFG_DMA_SKIP, offset, NULL);
        client_dma(FW_CFG_DMA_READ, size, piece);
        return;
    }
    fw_cfg_select(key);
    while (offset--)
        in8(FW_CFG_DATA);
    for (uint32_t i = 0; i < size; i++)
        piece[i] = in8(FW_CFG_DATA);
}

static void report_item(const struct fw_cfg_file *file, bool dma)
{
    stream_record("ITEM", sizeof(*file) + file->size);
    stream_bytes(file, sizeof(*file));
    for (uint32_t offset = 0; offset < file->size;) {
        uint32_t size = file->size - offset < sizeof(piece) ? file->size - offset : sizeof(piece);

        read_piece(file->key, offset, size, dma);
        stream_bytes(piece, size);
        offset += size;
    }
}

void report_items(void)
{
    static const struct fw_cfg_file fixed[] = {
        {4, FW_CFG_SIGNATURE, 0, ""}, {4, FW_CFG_ID, 0, ""},  {16, FW_CFG_UUID, 0, ""},    {8, FW_CFG_RAM_SIZE, 0, ""},
        {2, FW_CFG_CPUS, 0, ""},      {2, 0x0e, 0, ""},       {2, FW_CFG_MAX_CPUS, 0, ""},
    };
    bool dma = fw_cfg_read32(FW_CFG_ID) & FW_CFG_ID_DMA;
    uint32_t count = fw_cfg_directory();

    for (size_t i = 0; i < ARRAY_SIZE(fixed); i++)
        report_item(&fixed[i], dma);
    for (uint32_t i = 0; i < count; i++) {
        struct fw_cfg_file file;

        read_piece(FW_CFG_DIRECTORY, (uint32_t)(sizeof(count) + i * sizeof(file)), sizeof(file), dma);
        memcpy(&file, piece, sizeof(file));
        file.size = __builtin_bswap32(file.size);
        file.key = __builtin_bswap16(file.key);
        report_item(&file, dma);
    }
}
