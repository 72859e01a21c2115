/* Ports of a PC, for C and for assembly. */
#ifndef PORTS_H
#define PORTS_H

#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
#define RESET_CONTROL 0xcf9 /* a byte inside of CONFIG_ADDRESS, which takes only 32-bit accesses */

#define COM1 0x3f8
#define DEBUGCON 0x402       /* where firmware expects isa-debugcon (OVMF, SeaBIOS) */
#define DEBUGCON_BOCHS 0xe9  /* isa-debugcon's own default */
#define DEBUGCON_ANSWER 0xe9 /* what both read as */
#define ISA_DEBUG_EXIT 0xf4

#endif
