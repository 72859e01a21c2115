/*
 * The report guests: one runs under UEFI (efi.c), one under a BIOS (bios.c). Both tell the host, as a stream of binary
 * records, what firmware made of the tables that it was given. firmware/README.md describes the stream.
 *
 * Shared code here is compiled for 64 and for 32 bits, both with memory identity-mapped.
 */
#ifndef REPORT_H
#define REPORT_H

#include "fw_cfg.h"
#include "guest.h"

#define REPORT_VERSION 1

enum report_kind { REPORT_UEFI = 1, REPORT_BIOS = 2 };

/* Finds the way to the host: the writable fw_cfg file opt/vmm/report, else the debug port. False: there is neither. */
bool stream_open(enum report_kind kind);

/* Begins a record; exactly `size` bytes must follow by stream_bytes(). */
void stream_record(const char *tag, uint64_t size);
void stream_bytes(const void *data, size_t size);

/* A record that holds a GPA and the bytes that lie there. */
void stream_memory(const char *tag, uintptr_t address, size_t size);

/* The last record; hands everything over. */
void stream_close(void);

/* A DMA transfer, with the descriptor and the buffer anywhere. Returns the control word that the device left. */
uint32_t client_dma(uint32_t control, uint32_t length, const void *address);

/* Every file of the directory, and the fixed items that firmware and operating systems use. */
void report_items(void);

/* The RSDP at `address` and all that can be reached from it. */
void report_acpi(uintptr_t address);

/* The first table with that signature that report_acpi() came to; 0 for none. */
uintptr_t reported_table(const char *signature);

enum report_look { LOOK_ECAM = 1, LOOK_PM_TIMER, LOOK_HPET, LOOK_LOCAL_APIC, LOOK_IO_APIC, LOOK_X2APIC };

/* What lies at the addresses that those tables name; after report_acpi(). */
void report_looks(void);

/* An entry point, _SM_ or _SM3_, and the structures behind it. */
void report_smbios(uintptr_t address);

#endif
