/*
 * probe: says on the console what the machine tells its firmware, then starts the other CPUs and counts them.
 *
 * One `name: value` a line, in a fixed order, so that two machines' answers can be compared line by line. The status
 * is 0 if an interface answered, its answers hold together, and as many CPUs started as were promised.
 */
#include "fw_cfg.h"

enum status { STATUS_OK, STATUS_NO_INTERFACE, STATUS_BROKEN_ANSWER, STATUS_CPUS_MISSING };

static void show_text(const char *bytes, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++) {
        if (bytes[i] >= ' ' && bytes[i] <= '~')
            put_char(bytes[i]);
        else
            print("\\x%2x", (uint32_t)(uint8_t)bytes[i]);
    }
}

static bool show_e820(void)
{
    struct fw_cfg_file file;
    struct fw_cfg_e820 entry;

    if (!fw_cfg_find("etc/e820", &file)) {
        print("e820: absent\n");
        return true;
    }
    if (file.size % sizeof(entry)) {
        print("e820: size %u is not a multiple of %u\n", file.size, (uint32_t)sizeof(entry));
        return false;
    }
    fw_cfg_select(file.key);
    for (uint32_t i = 0; i < file.size / sizeof(entry); i++) {
        fw_cfg_read(&entry, sizeof(entry));
        print("e820: base 0x%8x%8x length 0x%8x%8x type %u\n", entry.base_high, entry.base_low, entry.length_high,
              entry.length_low, entry.type);
    }
    return true;
}

static bool show_items(void)
{
    uint32_t count = fw_cfg_directory();
    struct fw_cfg_file file;

    print("items: %u\n", count);
    for (uint32_t i = 0; i < count; i++) {
        fw_cfg_next(&file);
        if (file.key < FW_CFG_FIRST_FILE || file.name[sizeof(file.name) - 1]) {
            print("item: entry %u of the directory is broken\n", i);
            return false;
        }
        print("item: ");
        show_text(file.name, (uint32_t)strlen(file.name));
        print(" key 0x%4x size %u\n", (uint32_t)file.key, file.size);
    }
    return true;
}

static bool ask_fw_cfg(uint32_t *cpus)
{
    uint32_t id = fw_cfg_read32(FW_CFG_ID);
    uint32_t ram_size[2];
    uint32_t dma_signature[2];

    print("fw_cfg id: 0x%x (%s%s)\n", id, id & FW_CFG_ID_PORT ? "port" : "", id & FW_CFG_ID_DMA ? ", DMA" : "");
    if (id & FW_CFG_ID_DMA) {
        dma_signature[0] = in32(FW_CFG_DMA_HIGH);
        dma_signature[1] = in32(FW_CFG_DMA_LOW);
        print("dma signature: ");
        show_text((const char *)dma_signature, sizeof(dma_signature));
        print("\n");
    }
    *cpus = fw_cfg_read16(FW_CFG_CPUS);
    print("cpus at boot: %u\n", *cpus);
    print("cpus at most: %u\n", (uint32_t)fw_cfg_read16(FW_CFG_MAX_CPUS));
    fw_cfg_select(FW_CFG_RAM_SIZE);
    fw_cfg_read(ram_size, sizeof(ram_size));
    print("ram size: 0x%8x%8x\n", ram_size[1], ram_size[0]);
    return show_e820() && show_items();
}

static bool ask_fwctl(uint32_t *cpus)
{
    uint32_t error = fwctl_get32("hw.ncpu", cpus);

    if (error == FWCTL_BROKEN) {
        print("hw.ncpu: broken response\n");
        return false;
    }
    if (error)
        print("hw.ncpu: error %u\n", error);
    else
        print("hw.ncpu: %u\n", *cpus);
    return true;
}

static void show_cpus(uint32_t started)
{
    print("cpus started: %u\n", started);
    print("apic ids:");
    for (uint32_t id = 0; id < 4096; id++)
        if (ap_seen[id] || id == apic_id())
            print(" %u", id);
    print("\n");
}

static uint32_t probe(void)
{
    char signature[5];
    uint32_t cpus = 0;
    uint32_t started;
    bool sound;

    print("machine: %s\n", platform_name(platform_detect()));
    switch (interface_detect(signature)) {
    case INTERFACE_FW_CFG:
        print("interface: fw_cfg\n");
        sound = ask_fw_cfg(&cpus);
        break;
    case INTERFACE_FWCTL:
        print("interface: fwctl\n");
        sound = ask_fwctl(&cpus);
        break;
    default:
        print("interface: none (signature ");
        show_text(signature, 4);
        print(")\n");
        show_cpus(1 + cpus_start(0));
        return STATUS_NO_INTERFACE;
    }
    started = cpus == 1 ? 1 : 1 + cpus_start(cpus ? cpus - 1 : 0);
    show_cpus(started);
    if (!sound)
        return STATUS_BROKEN_ANSWER;
    return cpus && started != cpus ? STATUS_CPUS_MISSING : STATUS_OK;
}

uint32_t main(void);
uint32_t main(void)
{
    uint32_t status;

    console_init();
    print("vmm probe\n");
    status = probe();
    print("status: %u\n", status);
    return status;
}
