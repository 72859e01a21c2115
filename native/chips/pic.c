/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Two 8259A, the slave at the master's IR2 (Intel 231468-003), and their ELCR
 * (82371AB, 290562, 4.2.5.1 and 4.2.5.2), in struct kvm_pic_state. Differences
 * from the data sheet that every PC's software counts on: an edge stays
 * requested when its wire falls, so spurious interrupts are rare, and
 * MCS-80/85 mode, buffering and the address interval are ignored.
 */
#include "inside.h"

#define MASTER 0
#define SLAVE 1
#define CASCADE 2u
#define NONE 8u

/* Which word comes next, in init_state. */
enum { READY, ICW2, ICW3, ICW4, ICW2_SINGLE };

/* Of ICW1 and ICW4, OCW2 and OCW3. */
#define ICW1 0x10
#define ICW1_IC4 0x01
#define ICW1_SNGL 0x02
#define ICW4_AEOI 0x02
#define ICW4_SFNM 0x10
#define OCW3 0x08
#define OCW3_RIS 0x01
#define OCW3_RR 0x02
#define OCW3_POLL 0x04
#define OCW3_SMM 0x20
#define OCW3_ESMM 0x40

#define POLLED 0x80

/* Which inputs ELCR can make level-triggered: not the timer, keyboard, cascade, clock and coprocessor. */
static const uint8_t elcr_masks[] = {0xf8, 0xde};

/* How many levels below the highest is the most important of these? NONE if there are none. */
static uint32_t rank(const struct kvm_pic_state *pic, uint8_t set)
{
    for (uint32_t level = 0; level < 8; level++) {
        if (set >> ((level + pic->priority_add) & 7) & 1) {
            return level;
        }
    }
    return NONE;
}

/* The request that goes before what is in service, or -1. */
static int next_request(const struct chips *chips, uint32_t which)
{
    const struct kvm_pic_state *pic = &chips->pic[which];
    uint32_t requested = rank(pic, pic->irr & (uint8_t)~pic->imr);
    uint8_t in_service = pic->isr;

    if (pic->special_mask) {
        in_service &= (uint8_t)~pic->imr;
    }
    if (pic->special_fully_nested_mode && which == MASTER) {
        in_service &= (uint8_t) ~(1u << CASCADE);
    }
    if (requested == NONE || requested >= rank(pic, in_service)) {
        return -1;
    }
    return (int)((requested + pic->priority_add) & 7);
}

static void set_input(struct kvm_pic_state *pic, uint32_t input, bool level)
{
    uint8_t bit = (uint8_t)(1u << input);

    if (!level) {
        pic->last_irr &= (uint8_t)~bit;
        pic->irr &= (uint8_t) ~(pic->elcr & bit);
        return;
    }
    if ((pic->elcr & bit) || !(pic->last_irr & bit)) {
        pic->irr |= bit;
    }
    pic->last_irr |= bit;
}

/* After something may have changed one's output; the slave's is an input of the master. */
static void update(struct chips *chips, uint32_t which)
{
    if (which == SLAVE) {
        set_input(&chips->pic[MASTER], CASCADE, next_request(chips, SLAVE) >= 0);
    }
    if (pic_has_interrupt(chips)) {
        wake_for_pic(chips);
    }
}

bool pic_has_interrupt(const struct chips *chips)
{
    return next_request(chips, MASTER) >= 0;
}

void pic_set_line(struct chips *chips, uint32_t irq, bool level)
{
    set_input(&chips->pic[irq / 8], irq % 8, level);
    update(chips, irq / 8);
}

bool pic_is_heard(const struct chips *chips, uint32_t irq)
{
    return !(chips->pic[irq / 8].imr >> (irq % 8) & 1);
}

bool pic_is_requested(const struct chips *chips, uint32_t irq)
{
    return pic_is_heard(chips, irq) && (chips->pic[irq / 8].irr >> (irq % 8) & 1);
}

bool pic_is_busy(const struct chips *chips, uint32_t irq)
{
    return pic_is_requested(chips, irq) || (pic_is_heard(chips, irq) && (chips->pic[irq / 8].isr >> (irq % 8) & 1));
}

/* INTA to one of them. */
static void begin_service(struct kvm_pic_state *pic, uint32_t input)
{
    uint8_t bit = (uint8_t)(1u << input);

    if (!pic->auto_eoi) {
        pic->isr |= bit;
    } else if (pic->rotate_on_auto_eoi) {
        pic->priority_add = (input + 1) & 7;
    }
    if (!(pic->elcr & bit)) {
        pic->irr &= (uint8_t)~bit;
    }
}

uint8_t pic_acknowledge(struct chips *chips)
{
    struct kvm_pic_state *master = &chips->pic[MASTER];
    struct kvm_pic_state *slave = &chips->pic[SLAVE];
    int input = next_request(chips, MASTER);
    int behind;
    uint8_t vector;

    if (input < 0) {
        return master->irq_base + 7; /* spurious */
    }
    vector = (uint8_t)(master->irq_base + (uint32_t)input);
    if (input == (int)CASCADE) {
        behind = next_request(chips, SLAVE);
        vector = (uint8_t)(slave->irq_base + (behind < 0 ? 7 : behind));
        if (behind >= 0) {
            begin_service(slave, (uint32_t)behind);
            update(chips, SLAVE);
        }
    }
    begin_service(master, (uint32_t)input);
    update(chips, MASTER);
    return vector;
}

static void end_of_interrupt(struct kvm_pic_state *pic, uint32_t input, bool rotate)
{
    pic->isr &= (uint8_t) ~(1u << input);
    if (rotate) {
        pic->priority_add = (input + 1) & 7;
    }
}

/* Table "OCW2": R, SL and EOI. False: it changes nothing that is going on. */
static bool write_ocw2(struct kvm_pic_state *pic, uint8_t value)
{
    uint32_t named = value & 7;
    uint32_t first;

    switch (value >> 5) {
    case 0:
    case 4:
        pic->rotate_on_auto_eoi = value >> 7;
        return false;
    case 1:
    case 5:
        first = rank(pic, pic->isr);
        if (first == NONE) {
            return false;
        }
        end_of_interrupt(pic, (first + pic->priority_add) & 7, value >> 7);
        break;
    case 3:
    case 7:
        end_of_interrupt(pic, named, value >> 7);
        break;
    case 6:
        pic->priority_add = (named + 1) & 7;
        break;
    default:
        return false;
    }
    return true;
}

static void write_icw1(struct kvm_pic_state *pic, uint8_t value)
{
    *pic = (struct kvm_pic_state){
        .irr = pic->irr & pic->elcr, /* the edge sense circuit is reset */
        .elcr = pic->elcr,
        .elcr_mask = pic->elcr_mask,
        .init_state = (value & ICW1_SNGL) ? ICW2_SINGLE : ICW2,
        .init4 = value & ICW1_IC4,
    };
}

/* False: it changes nothing that is going on. */
static bool write_data(struct kvm_pic_state *pic, uint8_t value)
{
    switch (pic->init_state) {
    case READY:
        pic->imr = value;
        return true;
    case ICW2:
    case ICW2_SINGLE:
        pic->irq_base = value & 0xf8;
        pic->init_state = pic->init_state == ICW2 ? ICW3 : pic->init4 ? ICW4 : READY;
        break;
    case ICW3:
        pic->init_state = pic->init4 ? ICW4 : READY;
        break;
    default:
        pic->special_fully_nested_mode = (value & ICW4_SFNM) != 0;
        pic->auto_eoi = (value & ICW4_AEOI) != 0;
        pic->init_state = READY;
        break;
    }
    return false;
}

void pic_write(struct chips *chips, uint32_t port, uint8_t value)
{
    struct kvm_pic_state *pic = &chips->pic[port >> 7 & 1];

    if (port & 1) {
        if (!write_data(pic, value)) {
            return;
        }
    } else if (value & ICW1) {
        write_icw1(pic, value);
    } else if (value & OCW3) {
        pic->poll = (value & OCW3_POLL) ? 1 : pic->poll;
        pic->read_reg_select = (value & OCW3_RR) ? value & OCW3_RIS : pic->read_reg_select;
        pic->special_mask = (value & OCW3_ESMM) ? (value & OCW3_SMM) != 0 : pic->special_mask;
        return; /* as KVM and QEMU: the output is what it was until something else happens */
    } else if (!write_ocw2(pic, value)) {
        return;
    } else {
        pit_interrupt_ended(chips);
    }
    update(chips, port >> 7 & 1);
}

/* A read after the poll command is the INTA. */
static uint8_t poll(struct chips *chips, uint32_t which)
{
    int input = next_request(chips, which);

    chips->pic[which].poll = 0;
    if (input < 0) {
        return 0;
    }
    begin_service(&chips->pic[which], (uint32_t)input);
    update(chips, which);
    return (uint8_t)(POLLED | input);
}

uint8_t pic_read(struct chips *chips, uint32_t port)
{
    const struct kvm_pic_state *pic = &chips->pic[port >> 7 & 1];

    if (pic->poll) {
        return poll(chips, port >> 7 & 1);
    }
    if (port & 1) {
        return pic->imr;
    }
    return pic->read_reg_select ? pic->isr : pic->irr;
}

uint8_t elcr_read(const struct chips *chips, uint32_t port)
{
    return chips->pic[port & 1].elcr;
}

void elcr_write(struct chips *chips, uint32_t port, uint8_t value)
{
    struct kvm_pic_state *pic = &chips->pic[port & 1];

    pic->elcr = value & pic->elcr_mask;
}

void pic_reset(struct chips *chips)
{
    for (uint32_t i = 0; i < 2; i++) {
        chips->pic[i] = (struct kvm_pic_state){.elcr_mask = elcr_masks[i]};
    }
}

/* From outside, anything may come; these are shifts and indices. */
void pic_load(struct chips *chips, uint32_t which, const struct kvm_pic_state *state)
{
    struct kvm_pic_state *pic = &chips->pic[which];

    *pic = *state;
    pic->priority_add &= 7;
    pic->elcr_mask = elcr_masks[which];
    if (pic_has_interrupt(chips)) {
        wake_for_pic(chips);
    }
}
