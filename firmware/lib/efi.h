/* What of UEFI our guests use, in our own words: UEFI 2.10, chapters 4, 7 to 10, 12; PI 1.8 volume 2, 13.3. */
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
#define EFI_NOT_FOUND (EFI_ERROR_BIT | 14)

#define EFI_BOOT_SERVICES_DATA 4
#define EVT_NOTIFY_SIGNAL 0x200u
#define TPL_CALLBACK 8
#define EFI_RESET_SHUTDOWN 2
#define EFI_ALL_HANDLES 0
#define EFI_BY_PROTOCOL 2
#define EFI_NATIVE_INTERFACE 0

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
    void *before_install_protocol[7];
    efi_status(EFIAPI *install_protocol)(efi_handle *handle, const struct efi_guid *protocol, uint32_t type,
                                         void *interface);
    void *reinstall_protocol, *uninstall_protocol;
    efi_status(EFIAPI *handle_protocol)(efi_handle handle, const struct efi_guid *protocol, void **interface);
    void *before_load_image[5];
    efi_status(EFIAPI *load_image)(uint8_t boot_policy, efi_handle parent, void *path, const void *source, size_t size,
                                   efi_handle *image);
    efi_status(EFIAPI *start_image)(efi_handle image, size_t *exit_data_size, efi_char **exit_data);
    void *before_set_watchdog[5];
    efi_status(EFIAPI *set_watchdog)(size_t seconds, uint64_t code, size_t size, const efi_char *data);
    efi_status(EFIAPI *connect_controller)(efi_handle controller, efi_handle *drivers, void *path, uint8_t recursive);
    void *before_locate_handle_buffer[5];
    efi_status(EFIAPI *locate_handle_buffer)(uint32_t search, const struct efi_guid *protocol, void *key, size_t *count,
                                             efi_handle **handles);
    efi_status(EFIAPI *locate_protocol)(const struct efi_guid *protocol, void *registration, void **interface);
    void *install_multiple, *uninstall_multiple, *calculate_crc32, *copy_memory, *set_memory;
    efi_status(EFIAPI *create_event_ex)(uint32_t type, uint64_t tpl, void(EFIAPI *notify)(void *event, void *context),
                                        const void *context, const struct efi_guid *group, void **event);
};

_Static_assert(offsetof(struct efi_boot_services, get_memory_map) == 56, "UEFI 2.10, 4.4.1");
_Static_assert(offsetof(struct efi_boot_services, install_protocol) == 128, "UEFI 2.10, 4.4.1");
_Static_assert(offsetof(struct efi_boot_services, handle_protocol) == 152, "UEFI 2.10, 4.4.1");
_Static_assert(offsetof(struct efi_boot_services, load_image) == 200, "UEFI 2.10, 4.4.1");
_Static_assert(offsetof(struct efi_boot_services, set_watchdog) == 256, "UEFI 2.10, 4.4.1");
_Static_assert(offsetof(struct efi_boot_services, locate_handle_buffer) == 312, "UEFI 2.10, 4.4.1");
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

struct efi_text_output {
    void *reset;
    efi_status(EFIAPI *output_string)(struct efi_text_output *self, const efi_char *text);
};

struct efi_system_table {
    struct efi_table_header header;
    const efi_char *firmware_vendor;
    uint32_t firmware_revision;
    void *input_handle, *input, *output_handle;
    struct efi_text_output *output;
    void *error_handle, *error;
    struct efi_runtime_services *runtime;
    struct efi_boot_services *boot;
    size_t table_count;
    struct efi_configuration_table *tables;
};

_Static_assert(offsetof(struct efi_system_table, tables) == 112, "UEFI 2.10, 4.3.1");

struct efi_loaded_image {
    uint32_t revision;
    efi_handle parent;
    struct efi_system_table *table;
    efi_handle device;
    void *file_path, *reserved;
    uint32_t load_options_size;
    void *load_options;
    void *base;
    uint64_t size;
};

_Static_assert(offsetof(struct efi_loaded_image, size) == 72, "UEFI 2.10, 9.1.1");

/* UEFI Shell 2.2, 2.3. */
struct efi_shell_parameters {
    efi_char **arguments;
    size_t count;
    void *input, *output, *error;
};

struct efi_mp_services {
    efi_status(EFIAPI *get_number_of_processors)(struct efi_mp_services *self, size_t *total, size_t *enabled);
};

#endif
