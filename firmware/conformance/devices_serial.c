/* See devices_suite.h. This file: COM1 (National Semiconductor PC16550D). */
#include "devices_suite.h"

#define COM1_IRQ 4
#define DATA (COM1 + 0)
#define INTERRUPT_ENABLE (COM1 + 1)
#define INTERRUPT_ID (COM1 + 2)
#define FIFO_CONTROL (COM1 + 2)
#define LINE_CONTROL (COM1 + 3)
#define MODEM_CONTROL (COM1 + 4)
#define LINE_STATUS (COM1 + 5)
#define MODEM_STATUS (COM1 + 6)
#define SCRATCH (COM1 + 7)

#define OUT2 0x08
#define LOOPBACK 0x10

static void serial_acknowledge(void)
{
    (void)in8(INTERRUPT_ID);
}

static void suite_loopback(void)
{
    out8(FIFO_CONTROL, 0x07);
    out8(MODEM_CONTROL, LOOPBACK | 0x0a);
    tap_equal(in8(MODEM_STATUS) & 0xf0, 0x90, "COM1: RTS and OUT2 come back as CTS and DCD");
    out8(DATA, 0xae);
    tap_equal(in8(LINE_STATUS) & 0x01, 0x01, "COM1: a character comes back");
    tap_equal(in8(DATA), 0xae, "COM1: it is the one that was sent");
    tap_equal(in8(LINE_STATUS) & 0x01, 0x00, "COM1: and the only one");
    out8(MODEM_CONTROL, 0);
    (void)in8(MODEM_STATUS);
}

void suite_serial(void)
{
    if (in8(LINE_STATUS) == 0xff) {
        tap_skip("COM1", "there is none");
        return;
    }
    out8(LINE_CONTROL, 0x03);
    out8(SCRATCH, 0x5a);
    tap_equal(in8(SCRATCH), 0x5a, "COM1: scratch register");
    out8(INTERRUPT_ENABLE, 0xff);
    tap_equal(in8(INTERRUPT_ENABLE), 0x0f, "COM1: four interrupt enable bits");
    out8(INTERRUPT_ENABLE, 0);
    out8(LINE_CONTROL, 0x83);
    out8(DATA, 0x34);
    out8(INTERRUPT_ENABLE, 0x12);
    tap_equal((uint32_t)in8(DATA) | (uint32_t)in8(INTERRUPT_ENABLE) << 8, 0x1234, "COM1: divisor latch");
    out8(DATA, 1);
    out8(INTERRUPT_ENABLE, 0);
    out8(LINE_CONTROL, 0x03);
    tap_equal(in8(LINE_STATUS) & 0x60, 0x60, "COM1: the transmitter is empty");
    out8(FIFO_CONTROL, 0x00);
    tap_equal(in8(INTERRUPT_ID) & 0xcf, 0x01, "COM1: FIFOs off");
    out8(FIFO_CONTROL, 0x01);
    tap_equal(in8(INTERRUPT_ID) & 0xcf, 0xc1, "COM1: FIFOs on");
    suite_loopback();

    interrupts_acknowledge(serial_acknowledge);
    interrupts_unmask(COM1_IRQ);
    out8(MODEM_CONTROL, OUT2);
    out8(INTERRUPT_ENABLE, 0x02);
    tap_ok(interrupts_wait(VECTOR_PIC + COM1_IRQ, 1), "COM1: transmitter interrupt on IRQ 4 when it is enabled");
    out8(DATA, '.');
    tap_ok(interrupts_wait(VECTOR_PIC + COM1_IRQ, 1), "COM1: and after a character");
    out8(INTERRUPT_ENABLE, 0);
    interrupts_mask(COM1_IRQ);
    interrupts_acknowledge(NULL);
    out8(MODEM_CONTROL, 0);
}
