/*
 * A UEFI driver that prints every key that firmware reads from its consoles, when it is ready to boot: scan code and
 * character (UEFI 2.10, 12.3.2 and appendix B), in hexadecimal, on the debug port. "q" powers the machine off; "a" to
 * "i" make the serial ports terminals of another of edk2's types (MdeModulePkg, Include/Guid/TtyTerm.h; UEFI 2.10,
 * 10.3.4.13).
 */
#include "efi.h"

#define BY_PROTOCOL 2
#define MAX_INPUTS 8

struct efi_input_key {
    uint16_t scan_code;
    efi_char character;
};

struct efi_text_input {
    void *reset;
    efi_status(EFIAPI *read_key_stroke)(struct efi_text_input *self, struct efi_input_key *key);
};

/* Boot services by their place in the table, counted from raise_tpl (UEFI 2.10, 4.4.1). */
enum { HANDLE_PROTOCOL = 16, CONNECT_CONTROLLER = 30, DISCONNECT_CONTROLLER = 31, LOCATE_HANDLE_BUFFER = 36 };

typedef efi_status(EFIAPI *handle_protocol)(efi_handle handle, const struct efi_guid *protocol, void **interface);
typedef efi_status(EFIAPI *connect_controller)(efi_handle controller, efi_handle *drivers, const void *path, uint8_t deep);
typedef efi_status(EFIAPI *disconnect_controller)(efi_handle controller, efi_handle driver, efi_handle child);
typedef efi_status(EFIAPI *locate_handle_buffer)(uint32_t how, const struct efi_guid *protocol, void *key, size_t *count,
                                                 efi_handle **handles);

static const struct efi_guid ready_to_boot = {0x7ce88fb3, 0x4bd7, 0x4679, {0x87, 0xa8, 0xa8, 0xd8, 0xde, 0xe5, 0x0d, 0x2b}};
static const struct efi_guid serial_io = {0xbb25cf6f, 0xf1d4, 0x11d2, {0x9a, 0x0c, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0xfd}};
static const struct efi_guid text_input = {0x387477c1, 0x69c7, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};

static const struct efi_guid terminals[] = {
    {0xe0c14753, 0xf9be, 0x11d2, {0x9a, 0x0c, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}}, /* PC ANSI */
    {0xdfa66065, 0xb419, 0x11d3, {0x9a, 0x2d, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}}, /* VT100 */
    {0x7baec70b, 0x57e0, 0x4c76, {0x8e, 0x87, 0x2f, 0x9e, 0x28, 0x08, 0x83, 0x43}}, /* VT100+ */
    {0xad15a0d6, 0x8bec, 0x4acf, {0xa0, 0x73, 0xd0, 0x1d, 0xe7, 0x7e, 0x2d, 0x88}}, /* VT-UTF8 */
    {0x7d916d80, 0x5bb1, 0x458c, {0xa4, 0x8f, 0xe2, 0x5f, 0xdd, 0x51, 0xef, 0x94}}, /* TtyTerm */
    {0xe4364a7f, 0xf825, 0x430e, {0x9d, 0x3a, 0x9c, 0x9b, 0xe6, 0x81, 0x7c, 0xa5}}, /* Linux */
    {0xfbfca56b, 0xbb36, 0x4b78, {0xaa, 0xab, 0xbe, 0x1b, 0x97, 0xec, 0x7c, 0xcb}}, /* xterm R6 */
    {0x8e46dddd, 0x3d49, 0x4a9d, {0xb8, 0x75, 0x3c, 0x08, 0x6f, 0x6a, 0xa2, 0xbd}}, /* VT400 */
    {0xfc7dd6e0, 0x813c, 0x434d, {0xb4, 0xda, 0x3b, 0xd6, 0x49, 0xe9, 0xe1, 0x5a}}, /* SCO */
};

#define LAST_TERMINAL ('a' + sizeof terminals / sizeof *terminals - 1)

static struct efi_system_table *system_table;
static struct efi_text_input *inputs[MAX_INPUTS];
static size_t input_count;

static void print(char byte)
{
    __asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"((uint16_t)0x402));
}

static void print_hex(uint16_t value)
{
    for (int shift = 12; shift >= 0; shift -= 4)
        print("0123456789abcdef"[value >> shift & 15]);
}

static void print_text(const char *text)
{
    while (*text)
        print(*text++);
}

static void *boot_service(int index)
{
    return ((void **)&system_table->boot->raise_tpl)[index];
}

static size_t locate(const struct efi_guid *protocol, efi_handle **handles)
{
    size_t count = 0;

    if (((locate_handle_buffer)boot_service(LOCATE_HANDLE_BUFFER))(BY_PROTOCOL, protocol, NULL, &count, handles) != EFI_SUCCESS)
        return 0;
    return count;
}

static void find_inputs(void)
{
    efi_handle *handles;
    size_t count = locate(&text_input, &handles);

    input_count = 0;
    for (size_t i = 0; i < count && input_count < MAX_INPUTS; i++)
        if (((handle_protocol)boot_service(HANDLE_PROTOCOL))(handles[i], &text_input, (void **)&inputs[input_count]) == EFI_SUCCESS)
            input_count++;
}

static void become(efi_char letter)
{
    struct {
        uint8_t type, subtype;
        uint16_t size;
        struct efi_guid guid;
        uint8_t end[4];
    } __attribute__((packed)) path = {3, 10, 20, terminals[letter - 'a'], {0x7f, 0xff, 4, 0}};
    efi_handle *handles;
    size_t count = locate(&serial_io, &handles);

    for (size_t i = 0; i < count; i++) {
        ((disconnect_controller)boot_service(DISCONNECT_CONTROLLER))(handles[i], NULL, NULL);
        ((connect_controller)boot_service(CONNECT_CONTROLLER))(handles[i], NULL, &path, 0);
    }
    find_inputs();
    print_text("terminal ");
    print((char)letter);
    print('\n');
}

static void EFIAPI show_keys(void *event, void *context)
{
    struct efi_input_key key = {0, 0};

    (void)event;
    (void)context;
    find_inputs();
    print_text("ready for keys\n");
    for (size_t i = 0; key.character != 'q'; i++) {
        if (inputs[i % input_count]->read_key_stroke(inputs[i % input_count], &key) != EFI_SUCCESS)
            continue;
        if (key.character >= 'a' && key.character <= LAST_TERMINAL) {
            become(key.character);
            continue;
        }
        print_text("key ");
        print_hex(key.scan_code);
        print(' ');
        print_hex(key.character);
        print('\n');
    }
    system_table->runtime->reset_system(EFI_RESET_SHUTDOWN, EFI_SUCCESS, 0, NULL);
}

efi_status EFIAPI efi_main(efi_handle image, struct efi_system_table *table)
{
    void *event;

    (void)image;
    system_table = table;
    return table->boot->create_event_ex(EVT_NOTIFY_SIGNAL, TPL_CALLBACK, show_keys, NULL, &ready_to_boot, &event);
}
