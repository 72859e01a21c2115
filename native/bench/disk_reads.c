/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A program of Linux guests, for `vmm bench disk`: reads 4 KiB at random places
 * of a disk, past the page cache, with so many requests on their way at a time
 * (Linux's asynchronous I/O). Prints how many were served, and in how many
 * nanoseconds.
 *
 * Without a C library, so that it needs nothing in the guest, and no static
 * library where it is built.
 *
 * usage: disk_reads DISK DEPTH MILLISECONDS
 *        disk_reads      what time it is, in nanoseconds, for what other programs take
 */
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <linux/time.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#define O_RDONLY 0
#define O_DIRECT 040000 /* <asm-generic/fcntl.h> */
#define SEEK_END 2

#define READ_BYTES 4096u
#define MAX_DEPTH 128u

static _Alignas(READ_BYTES) uint8_t buffers[MAX_DEPTH][READ_BYTES];
static struct iocb requests[MAX_DEPTH];

static long call(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return result;
}

static _Noreturn void end(int status)
{
    for (;;) {
        call(SYS_exit_group, status, 0, 0, 0, 0);
    }
}

static void print(const char *text)
{
    size_t length = 0;

    while (text[length] != '\0') {
        length++;
    }
    call(SYS_write, 1, (long)text, (long)length, 0, 0);
}

static void print_number(uint64_t number)
{
    char text[21];
    char *at = text + sizeof(text) - 1;

    *at = '\0';
    do {
        *--at = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    print(at);
}

static uint64_t number_of(const char *text)
{
    uint64_t number = 0;

    while (*text >= '0' && *text <= '9') {
        number = 10 * number + (uint64_t)(*text++ - '0');
    }
    return number;
}

static long check(long result, const char *what)
{
    if (result < 0) {
        print("disk_reads: ");
        print(what);
        print(": error ");
        print_number((uint64_t)-result);
        print("\n");
        end(1);
    }
    return result;
}

static uint64_t now(void)
{
    struct timespec time;

    check(call(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&time, 0, 0, 0), "clock_gettime");
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Marsaglia's xorshift: the same places in every run. */
static uint64_t random_number(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void submit(aio_context_t context, int disk, uint64_t blocks, uint32_t index)
{
    struct iocb *request = &requests[index];

    *request = (struct iocb){
        .aio_data = index,
        .aio_lio_opcode = IOCB_CMD_PREAD,
        .aio_fildes = (uint32_t)disk,
        .aio_buf = (uint64_t)buffers[index],
        .aio_nbytes = READ_BYTES,
        .aio_offset = (int64_t)(random_number() % blocks * READ_BYTES),
    };
    check(call(SYS_io_submit, (long)context, 1, (long)&request, 0, 0), "io_submit");
}

__attribute__((used)) static _Noreturn void begin(const long *stack)
{
    const char *const *words = (const char *const *)(stack + 1);
    struct io_event events[MAX_DEPTH];
    aio_context_t context = 0;
    uint64_t depth, began, ends_at, blocks, done = 0;
    int disk;

    if (stack[0] == 1) {
        print("disk_reads: now ");
        print_number(now());
        print("\n");
        end(0);
    }
    if (stack[0] != 4 || number_of(words[2]) == 0 || number_of(words[2]) > MAX_DEPTH) {
        print("usage: disk_reads DISK DEPTH MILLISECONDS\n");
        end(2);
    }
    depth = number_of(words[2]);
    disk = (int)check(call(SYS_open, (long)words[1], O_RDONLY | O_DIRECT, 0, 0, 0), words[1]);
    blocks = (uint64_t)check(call(SYS_lseek, disk, 0, SEEK_END, 0, 0), "lseek") / READ_BYTES;
    check(call(SYS_io_setup, MAX_DEPTH, (long)&context, 0, 0, 0), "io_setup");
    began = now();
    ends_at = began + number_of(words[3]) * 1000000;
    for (uint32_t i = 0; i < depth; i++) {
        submit(context, disk, blocks, i);
    }
    do {
        long count = check(call(SYS_io_getevents, (long)context, 1, MAX_DEPTH, (long)events, 0), "io_getevents");

        for (long i = 0; i < count; i++) {
            check(events[i].res, "read");
            submit(context, disk, blocks, (uint32_t)events[i].data);
        }
        done += (uint64_t)count;
    } while (now() < ends_at);
    ends_at = now();
    print("disk_reads: depth ");
    print_number(depth);
    print(" reads ");
    print_number(done);
    print(" ns ");
    print_number(ends_at - began);
    print("\n");
    end(0);
}

__attribute__((naked)) void _start(void);

void _start(void)
{
    __asm__("mov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin");
}
