/*
 * The launcher: firmware starts it as the "kernel" that fw_cfg hands over. It loads a UEFI application from whichever
 * file system has it, starts it as a shell would, tells the host what came of it, and powers the machine off.
 */
#include "efi.h"
#include "report.h"

/* NUL-terminated strings in UTF-16: the file, the load options, then the arguments. */
#define REQUEST_FILE "opt/vmm/run"
/* Written by us: a struct progress. */
#define PROGRESS_FILE "opt/vmm/run-progress"

enum stage { STAGE_STARTED = 1, STAGE_RETURNED, STAGE_NOT_LOADED };

struct progress {
    uint32_t stage;
    uint32_t reserved;
    uint64_t status; /* EFI_STATUS, from STAGE_RETURNED on */
    uint64_t base;   /* where the application is */
    uint64_t size;
};

static const struct efi_guid loaded_image = {0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const struct efi_guid device_path = {0x09576e91, 0x6d3f, 0x11d2, {0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const struct efi_guid file_system = {0x964e5b22, 0x6459, 0x11d2, {0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const struct efi_guid parameters = {0x752f3136, 0x4e16, 0x4fdc, {0xa2, 0x2a, 0xe5, 0xf4, 0x68, 0x12, 0xf4, 0xca}};

#define REQUEST_UNITS 0x8000
#define MAX_ARGUMENTS 0x1000

static efi_char request[REQUEST_UNITS];
static uint8_t path[0x12000];
static efi_char *arguments[MAX_ARGUMENTS];
static struct efi_boot_services *boot;
static uint16_t progress_key;

static void tell(const struct progress *progress)
{
    if (progress_key)
        client_dma(FW_CFG_DMA_KEY(progress_key) | FW_CFG_DMA_WRITE, sizeof(*progress), progress);
}

static size_t units(const efi_char *text)
{
    size_t length = 0;

    while (text[length])
        length++;
    return length + 1;
}

/* Reads the request; returns how many 16-bit units it has, 0 if there is none that can be served. */
static size_t read_request(void)
{
    struct fw_cfg_file file;
    char signature[5];

    if (interface_detect(signature) != INTERFACE_FW_CFG || !fw_cfg_find(PROGRESS_FILE, &file))
        return 0;
    progress_key = file.key;
    if (!fw_cfg_find(REQUEST_FILE, &file) || file.size > sizeof(request) - sizeof(efi_char))
        return 0;
    client_dma(FW_CFG_DMA_KEY(file.key) | FW_CFG_DMA_READ, file.size, request);
    return file.size / sizeof(efi_char);
}

static void connect_all(void)
{
    efi_handle *handles;
    size_t count;

    if (boot->locate_handle_buffer(EFI_ALL_HANDLES, NULL, NULL, &count, &handles) != EFI_SUCCESS)
        return;
    for (size_t i = 0; i < count; i++)
        boot->connect_controller(handles[i], NULL, NULL, 1);
}

/* The path of a file on a device: the device's nodes, one with the name, the end (UEFI 2.10, 10.3). False: too long. */
static bool make_path(const uint8_t *device, const efi_char *name)
{
    static const uint8_t end[4] = {0x7f, 0xff, 4, 0};
    size_t at = 0;
    size_t bytes = units(name) * sizeof(efi_char);
    size_t node = 4 + bytes;

    while (device[at] != 0x7f)
        at += (size_t)(device[at + 2] | device[at + 3] << 8);
    if (node > 0xffff || at + node + sizeof(end) > sizeof(path))
        return false;
    memcpy(path, device, at);
    path[at] = 4;
    path[at + 1] = 4;
    path[at + 2] = (uint8_t)node;
    path[at + 3] = (uint8_t)(node >> 8);
    memcpy(path + at + 4, name, bytes);
    memcpy(path + at + node, end, sizeof(end));
    return true;
}

static efi_status load(efi_handle parent, const efi_char *name, efi_handle *image)
{
    efi_status status = EFI_NOT_FOUND;
    efi_handle *handles;
    size_t count;
    void *device;

    if (boot->locate_handle_buffer(EFI_BY_PROTOCOL, &file_system, NULL, &count, &handles) != EFI_SUCCESS)
        return status;
    for (size_t i = 0; i < count && status == EFI_NOT_FOUND; i++)
        if (boot->handle_protocol(handles[i], &device_path, &device) == EFI_SUCCESS && make_path(device, name))
            status = boot->load_image(0, parent, path, NULL, 0, image);
    return status;
}

static efi_status run(efi_handle parent, size_t size, struct progress *progress)
{
    static struct efi_shell_parameters shell = {.arguments = NULL};
    struct efi_loaded_image *loaded;
    efi_char *options = request + units(request);
    efi_char *end = request + size;
    efi_handle image;
    efi_status status;

    connect_all();
    status = load(parent, request, &image);
    if (status == EFI_SUCCESS)
        status = boot->handle_protocol(image, &loaded_image, (void **)&loaded);
    if (status != EFI_SUCCESS)
        return status;
    loaded->load_options = options;
    loaded->load_options_size = (uint32_t)(units(options) * sizeof(efi_char));
    for (efi_char *next = options + units(options); next < end && shell.count < MAX_ARGUMENTS; next += units(next))
        arguments[shell.count++] = next;
    shell.arguments = arguments; /* without files: who prints there prints on the console then */
    boot->install_protocol(&image, &parameters, EFI_NATIVE_INTERFACE, &shell);
    boot->set_watchdog(0, 0, 0, NULL);
    progress->stage = STAGE_STARTED;
    progress->base = (uintptr_t)loaded->base;
    progress->size = loaded->size;
    tell(progress);
    status = boot->start_image(image, NULL, NULL);
    progress->stage = STAGE_RETURNED;
    return status;
}

efi_status EFIAPI efi_main(efi_handle image, struct efi_system_table *table); /* from efi.ld */

efi_status EFIAPI efi_main(efi_handle image, struct efi_system_table *table)
{
    struct progress progress = {STAGE_NOT_LOADED, 0, EFI_NOT_FOUND, 0, 0};
    size_t size = read_request();

    boot = table->boot;
    if (size)
        progress.status = run(image, size, &progress);
    tell(&progress);
    table->runtime->reset_system(EFI_RESET_SHUTDOWN, EFI_SUCCESS, 0, NULL);
    return EFI_SUCCESS;
}
