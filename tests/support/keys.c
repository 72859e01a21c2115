/*
 * A UEFI driver that prints every key that firmware reads from its console, when it is ready to boot: scan code and
 * character (UEFI 2.10, 12.3.2 and appendix B), in hexadecimal, on the debug port. "q" powers the machine off.
 */
#include "efi.h"

struct efi_input_key {
    uint16_t scan_code;
    efi_char character;
};

struct efi_text_input {
    void *reset;
    efi_status(EFIAPI *read_key_stroke)(struct efi_text_input *self, struct efi_input_key *key);
};

static const struct efi_guid ready_to_boot = {0x7ce88fb3, 0x4bd7, 0x4679, {0x87, 0xa8, 0xa8, 0xd8, 0xde, 0xe5, 0x0d, 0x2b}};

static struct efi_system_table *system_table;

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

static void EFIAPI show_keys(void *event, void *context)
{
    struct efi_text_input *input = system_table->consoles[1];
    struct efi_input_key key = {0, 0};

    (void)event;
    (void)context;
    print_text("ready for keys\n");
    while (key.character != 'q') {
        if (input->read_key_stroke(input, &key) != EFI_SUCCESS)
            continue;
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
