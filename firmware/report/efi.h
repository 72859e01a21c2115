/* What of UEFI the report guest uses, in our own words: UEFI 2.10, chapters 4, 7, 8; PI 1.8 volume 2, 13.3. */
#ifndef EFI_H
#define EFI_H

#include <stddef.h>
#include <stdint.h>

#define EFIAPI __attribute__((ms_abi))

typedef uint64_t efi_status;
typedef void *efi_handle;
typedef uint16_t efi_char;

#define EFI_SUCCESS 0
#define EFI_ERROR_BIT 0x8000000000000000u
#define EFI_BUFFER_TOO_SMALL (EFI_ERROR_BIT | 5)

#define EFI_BOOT_SERVICES_DATA 4
#define EVT_NOTIFY_SIGNAL 0x200u
#define TPL_CALLBACK 8
#define EFI_RESET_SHUTDOWN 2

struct efi_guid {
    uint32_t a;
    uint16_t b;
    uint16_t c;
    uint8_t d[8];
};

struct efi_table_header {
    uint64_t signature;
    uint32_t revision;
    uint32_t size;
    uint32_t crc32;
    uint32_t reserved;
};

struct efi_boot_services {
    struct efi_table_header header;
    void *raise_tpl, *restore_tpl, *allocate_pages, *free_pages;
    efi_status(EFIAPI *get_memory_map)(size_t *size, void *map, size_t *key, size_t *descriptor, uint32_t *version);
    efi_status(EFIAPI *allocate_pool)(uint32_t type, size_t size, void **buffer);
    void *before_locate_protocol[31];
    efi_status(EFIAPI *locate_protocol)(const struct efi_guid *protocol, void *registration, void **interface);
    void *install_multiple, *uninstall_multiple, *calculate_crc32, *copy_memory, *set_memory;
    efi_status(EFIAPI *create_event_ex)(uint32_t type, uint64_t tpl, void(EFIAPI *notify)(void *event, void *context),
                                        const void *context, const struct efi_guid *group, void **event);
};

_Static_assert(offsetof(struct efi_boot_services, get_memory_map) == 56, "UEFI 2.10, 4.4.1");
_Static_assert(offsetof(struct efi_boot_services, locate_protocol) == 320, "UEFI 2.10, 4.4.1");
_Static_assert(offsetof(struct efi_boot_services, create_event_ex) == 368, "UEFI 2.10, 4.4.1");

struct efi_runtime_services {
    struct efi_table_header header;
    void *before_get_variable[6];
    efi_status(EFIAPI *get_variable)(const efi_char *name, const struct efi_guid *vendor, uint32_t *attributes,
                                     size_t *size, void *data);
    efi_status(EFIAPI *get_next_variable_name)(size_t *size, efi_char *name, struct efi_guid *vendor);
    void *set_variable, *next_high_monotonic_count;
    void(EFIAPI *reset_system)(uint32_t type, efi_status status, size_t size, const void *data);
};

_Static_assert(offsetof(struct efi_runtime_services, get_variable) == 72, "UEFI 2.10, 4.5.1");
_Static_assert(offsetof(struct efi_runtime_services, reset_system) == 104, "UEFI 2.10, 4.5.1");

struct efi_configuration_table {
    struct efi_guid guid;
    void *table;
};

struct efi_system_table {
    struct efi_table_header header;
    const efi_char *firmware_vendor;
    uint32_t firmware_revision;
    void *consoles[6];
    struct efi_runtime_services *runtime;
    struct efi_boot_services *boot;
    size_t table_count;
    struct efi_configuration_table *tables;
};

_Static_assert(offsetof(struct efi_system_table, tables) == 112, "UEFI 2.10, 4.3.1");

struct efi_mp_services {
    efi_status(EFIAPI *get_number_of_processors)(struct efi_mp_services *self, size_t *total, size_t *enabled);
};

#endif
