/* See guest.h. */
#include "guest.h"

#include <stdarg.h>

#define COM1_LINE_STATUS (COM1 + 5)
#define LINE_STATUS_THR_EMPTY 0x20

static uint16_t console_port;

void console_init(void)
{
    if (in8(DEBUGCON) == DEBUGCON_ANSWER)
        console_port = DEBUGCON;
    else if (in8(DEBUGCON_BOCHS) == DEBUGCON_ANSWER)
        console_port = DEBUGCON_BOCHS;
    else
        console_port = COM1;
}

void put_char(char c)
{
    if (console_port == COM1)
        while (!(in8(COM1_LINE_STATUS) & LINE_STATUS_THR_EMPTY))
            ;
    out8(console_port, (uint8_t)c);
}

static void put_number(uint32_t value, uint32_t base, unsigned int width)
{
    char digits[10];
    unsigned int n = 0;

    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (width > n)
        put_char('0'), width--;
    while (n)
        put_char(digits[--n]);
}

void print(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    for (; *format; format++) {
        unsigned int width = 0;

        if (*format != '%') {
            put_char(*format);
            continue;
        }
        for (format++; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + (unsigned int)(*format - '0');
        switch (*format) {
        case 's':
            for (const char *text = va_arg(arguments, const char *); *text; text++)
                put_char(*text);
            break;
        case 'c':
            put_char((char)va_arg(arguments, int));
            break;
        case 'u':
            put_number(va_arg(arguments, uint32_t), 10, width);
            break;
        case 'x':
            put_number(va_arg(arguments, uint32_t), 16, width);
            break;
        default:
            put_char(*format);
        }
    }
    va_end(arguments);
}
