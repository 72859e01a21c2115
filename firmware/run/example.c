/*
 * An example of a UEFI application: prints its load options, and does what a word of them says: fail (it returns
 * EFI_ABORTED), warn (EFI_WARN_DELETE_FAILURE), crash, hang, list (its arguments, as a shell gives them). Booted from a
 * disk it has none, and fails, so that firmware goes on to what is next in its boot order.
 */
#include "efi.h"

#include <stdbool.h>

#define EFI_ABORTED (EFI_ERROR_BIT | 21)
#define EFI_WARN_DELETE_FAILURE 2

static const struct efi_guid loaded_image = {0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const struct efi_guid parameters = {0x752f3136, 0x4e16, 0x4fdc, {0xa2, 0x2a, 0xe5, 0xf4, 0x68, 0x12, 0xf4, 0xca}};

/* Whether WORD, in ASCII, is in TEXT, behind a blank. */
static bool has_word(const efi_char *text, const char *word)
{
    for (; *text; text++) {
        size_t i = 0;

        if (*text != ' ')
            continue;
        while (word[i] && text[1 + i] == (efi_char)word[i])
            i++;
        if (!word[i] && (!text[1 + i] || text[1 + i] == ' '))
            return true;
    }
    return false;
}

efi_status EFIAPI efi_main(efi_handle image, struct efi_system_table *table); /* from efi.ld */

efi_status EFIAPI efi_main(efi_handle image, struct efi_system_table *table)
{
    struct efi_boot_services *boot = table->boot;
    struct efi_loaded_image *loaded;
    struct efi_shell_parameters *shell;
    efi_status status = boot->handle_protocol(image, &loaded_image, (void **)&loaded);
    const efi_char *options = u"example.efi without load options, so it will fail";

    if (status != EFI_SUCCESS)
        return status;
    if (loaded->load_options_size)
        options = loaded->load_options;
    table->output->output_string(table->output, options);
    table->output->output_string(table->output, u"\r\n");
    if (has_word(options, "list") && boot->handle_protocol(image, &parameters, (void **)&shell) == EFI_SUCCESS)
        for (size_t i = 0; i < shell->count; i++) {
            table->output->output_string(table->output, shell->arguments[i]);
            table->output->output_string(table->output, u"\r\n");
        }
    if (has_word(options, "crash"))
        __asm__ volatile("ud2");
    if (has_word(options, "hang"))
        for (;;)
            __asm__ volatile("pause");
    if (has_word(options, "fail"))
        return EFI_ABORTED;
    return has_word(options, "warn") ? EFI_WARN_DELETE_FAILURE : EFI_SUCCESS;
}
