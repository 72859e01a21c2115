/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Runs programs of random instructions in the software CPU, two vCPUs at once
 * on one memory, in turn or on threads of their own, in all modes and in rings
 * 0 and 3. What no guest may do is to end or stop the process, or to make the
 * engine give up; the supervisor sees that from outside, keeps the program in a
 * file, and says how to run it again.
 *
 * usage: softcpu_fuzz SECONDS DIRECTORY [SEED]   programs made from SEED, SEED + 1, …; findings go to DIRECTORY
 *        softcpu_fuzz FILE...                    run these programs
 *
 * The exit status is 1 if anything was found.
 */
#include "softcpu_guest.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "x86_code.h"

/*
 * Rounds of both vCPUs that a program may go on for. Most end after some instructions, as with virtual time, so that a seed
 * does the same on any host; the others after this time.
 */
#define ROUNDS 4
#define ROUND_NS 100000
/* Without a finished program for so long, the worker hangs. A program is done in about 10 ms at most. */
#define HANG_SECONDS 20

/* Shared by the supervisor and its worker. */
struct progress {
    _Atomic uint64_t seed;
    _Atomic uint64_t ran;
    _Atomic uint64_t instructions;
    _Atomic uint32_t gave_up;
    char why[160];
    struct program program;
};

static void make_program(uint64_t seed, struct program *program)
{
    struct random random = {seed};

    memset(program, 0, sizeof(*program));
    program->mode = (uint8_t)random_below(&random, MODES);
    program->ring3 = random_below(&random, 3) == 0;
    program->start = (uint8_t)random_next(&random);
    program->trap_flag = random_below(&random, 50) == 0;
    program->registers = (uint32_t)random_next(&random);
    program->side_by_side = random_below(&random, 16) == 0;
    if (!program->side_by_side && random_below(&random, 16) != 0) {
        program->budget = 1u << random_below(&random, 9);
    }
    /* Most are short: what matters is what two or three instructions do to each other, and a translation takes its time. */
    program->size = random_below(&random, 64) == 0 ? CODE_BYTES
                    : random_below(&random, 8) == 0 ? 1 + random_below(&random, 512)
                                                    : 1 + random_below(&random, 96);
    for (uint32_t i = 0; i < GUEST_CPUS; i++) {
        x86_code_fill(&random, program_bits(program), program->code[i], program->size);
    }
}

static _Atomic bool hurried;

static void *hurry(void *opaque)
{
    struct guest *guest = opaque;
    const struct timespec round = {.tv_nsec = ROUND_NS};

    for (;;) {
        nanosleep(&round, NULL);
        for (uint32_t i = 0; hurried && i < GUEST_CPUS; i++) {
            engine_ask_to_leave(guest->vcpus[i]);
        }
    }
    return NULL;
}

/*
 * What a program meets that goes astray: random bytes behind the programs and in three of four pages of data, its end where
 * low memory has nothing else. In zeros, it would add AL to a byte for hundreds of instructions a block, and have the block
 * translated anew wherever it meets itself.
 */
static void fill(uint8_t *image)
{
    static const uint32_t ends[][2] = {{0x400, STUBS}, {STUBS + 0x100, GDT}, {DIRECTORY_32 + 0x1000, PROGRAMS}};
    struct random random = {0};

    for (uint32_t at = PROGRAMS; at < RAM_BYTES; at += sizeof(uint64_t)) {
        uint64_t bytes = random_next(&random);

        if (at < PROGRAMS + GUEST_CPUS * PROGRAM_STRIDE || (at >= DATA && at / 0x1000 % 4 != 3)) {
            memcpy(image + at, &bytes, sizeof(bytes));
        }
    }
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        for (uint32_t at = ends[i][0]; at < ends[i][1]; at += 2) {
            memcpy(image + at, (uint8_t[]){0xcd, END_VECTOR}, 2);
        }
    }
}

/* A guest whose programs are cut short, or NULL; lives as long as the process. */
static struct guest *hurried_guest(void)
{
    struct guest *guest = guest_new();
    pthread_t thread;

    if (guest == NULL || pthread_create(&thread, NULL, hurry, guest) != 0) {
        fprintf(stderr, "softcpu_fuzz: no memory\n");
        return NULL;
    }
    fill(guest->image);
    return guest;
}

static uint64_t instructions(const struct softcpu_vcpu *vcpu)
{
    return vcpu->cpu.parent_obj.random_seed;
}

/* True: it goes on, or would if it had the time. */
static bool run_cpu(struct softcpu_vcpu *vcpu, uint32_t budget)
{
    int reason = LEAVE_AGAIN;

    CPU(&vcpu->cpu)->icount_budget = budget == 0 ? 0 : (int64_t)(instructions(vcpu) + budget);
    lock_acquire(vcpu);
    for (uint32_t times = 0; times < 64 && (reason == LEAVE_AGAIN || reason == LEAVE_PAUSE); times++) {
        reason = engine_execute(vcpu);
    }
    lock_release(vcpu);
    return reason < LEAVE_HALT || reason == LEAVE_AGAIN || reason == LEAVE_PAUSE;
}

static void *run_rounds(void *opaque)
{
    for (uint32_t round = 0; round < ROUNDS && run_cpu(opaque, 0); round++) {
    }
    return NULL;
}

static bool run_side_by_side(struct guest *guest)
{
    pthread_t threads[GUEST_CPUS];
    uint32_t count = 0;

    while (count < GUEST_CPUS && pthread_create(&threads[count], NULL, run_rounds, guest->vcpus[count]) == 0) {
        count++;
    }
    for (uint32_t i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
    }
    return !engine_gave_up(guest->softcpu);
}

/* False: the engine gave up. */
static bool run_program(struct guest *guest, const struct program *program)
{
    bool running[GUEST_CPUS];

    memset(running, true, sizeof(running));
    hurried = program->budget == 0;
    lock_acquire(guest->vcpus[0]);
    guest_load(guest, program);
    lock_release(guest->vcpus[0]);
    if (program->side_by_side) {
        return run_side_by_side(guest);
    }
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < GUEST_CPUS; i++) {
            running[i] = running[i] && run_cpu(guest->vcpus[i], program->budget);
        }
    }
    return !engine_gave_up(guest->softcpu);
}

static int work(struct progress *progress)
{
    struct guest *guest = hurried_guest();
    uint64_t before = progress->instructions;

    if (guest == NULL) {
        return 2;
    }
    for (;;) {
        make_program(progress->seed, &progress->program);
        if (!run_program(guest, &progress->program)) {
            memcpy(progress->why, guest->softcpu->why_gave_up, sizeof(progress->why));
            progress->gave_up = 1;
            return 1;
        }
        progress->instructions = before + instructions(guest->vcpus[0]) + instructions(guest->vcpus[1]);
        progress->ran++;
        progress->seed++;
    }
}

static void save(const struct progress *progress, const char *directory, const char *what, const char *self)
{
    char path[4096];
    FILE *file;

    snprintf(path, sizeof(path), "%s/softcpu-%s-%llu", directory, what, (unsigned long long)progress->seed);
    file = fopen(path, "wb");
    if (file == NULL || fwrite(&progress->program, sizeof(progress->program), 1, file) != 1 || fclose(file) != 0) {
        fprintf(stderr, "softcpu_fuzz: cannot write %s: %s\n", path, strerror(errno));
    }
    fprintf(stderr, "softcpu_fuzz: seed %llu: %s%s%s\n  again: %s %s\n", (unsigned long long)progress->seed, what,
            progress->gave_up ? ": " : "", progress->gave_up ? progress->why : "", self, path);
}

/* Wait for the worker until `end`. True: it found something. */
static bool watch(pid_t worker, struct progress *progress, time_t end, const char *directory, const char *self)
{
    uint64_t last = progress->ran;
    time_t moved = time(NULL);
    int status;

    for (;;) {
        if (waitpid(worker, &status, WNOHANG) == worker) {
            break;
        }
        usleep(100000);
        if (progress->ran != last) {
            last = progress->ran;
            moved = time(NULL);
        }
        if (time(NULL) - moved > HANG_SECONDS || time(NULL) >= end) {
            bool hangs = time(NULL) - moved > HANG_SECONDS;

            kill(worker, SIGKILL);
            waitpid(worker, &status, 0);
            if (hangs) {
                save(progress, directory, "hang", self);
            }
            return hangs;
        }
    }
    save(progress, directory, progress->gave_up ? "gave-up" : "crash", self);
    return true;
}

static int supervise(uint64_t seconds, const char *directory, uint64_t seed, const char *self)
{
    struct progress *progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    time_t end = time(NULL) + (time_t)seconds;
    uint32_t found = 0;

    if (progress == MAP_FAILED) {
        perror("softcpu_fuzz: mmap");
        return 2;
    }
    progress->seed = seed;
    while (time(NULL) < end) {
        pid_t worker = fork();

        if (worker == 0) {
            _exit(work(progress));
        }
        found += watch(worker, progress, end, directory, self);
        progress->gave_up = 0;
        progress->seed++;
    }
    printf("softcpu_fuzz: seeds %llu to %llu: %llu programs, %.0f million instructions, %u found\n",
           (unsigned long long)seed, (unsigned long long)progress->seed - 1, (unsigned long long)progress->ran,
           (double)progress->instructions / 1e6, found);
    return found != 0;
}

static int run_files(int count, char **paths)
{
    struct guest *guest = hurried_guest();

    if (guest == NULL) {
        return 2;
    }
    for (int i = 0; i < count; i++) {
        struct program program;
        FILE *file = fopen(paths[i], "rb");

        if (file == NULL || fread(&program, sizeof(program), 1, file) != 1) {
            fprintf(stderr, "softcpu_fuzz: cannot read a program from %s\n", paths[i]);
            return 2;
        }
        fclose(file);
        if (!run_program(guest, &program)) {
            fprintf(stderr, "softcpu_fuzz: %s: gave up: %s\n", paths[i], guest->softcpu->why_gave_up);
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    char *rest = NULL;
    uint64_t seconds = argc > 2 ? strtoull(argv[1], &rest, 10) : 0;

    if (rest != NULL && *rest == '\0') {
        return supervise(seconds, argv[2], argc > 3 ? strtoull(argv[3], NULL, 10) : (uint64_t)time(NULL) << 20, argv[0]);
    }
    if (argc < 2) {
        fprintf(stderr, "usage: %s SECONDS DIRECTORY [SEED] | FILE...\n", argv[0]);
        return 2;
    }
    return run_files(argc - 1, argv + 1);
}
