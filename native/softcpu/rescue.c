/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where Unicorn gives up. A failed assertion, abort() or exit() in it would
 * take down the process that the machine is a part of, and a guest that finds
 * a way there is to end its own machine alone: the thread goes back to where it
 * called into the engine, which is never entered again.
 *
 * What is called within rescue_run holds no lock of its own on the way into the
 * engine, except the one for executing, which its caller releases as ever.
 */
#include "engine.h"

#include <setjmp.h>

struct rescue {
    jmp_buf back;
    struct softcpu *softcpu;
    struct rescue *outer;
};

static __thread struct rescue *innermost;

bool rescue_run(struct softcpu *softcpu, void (*step)(void *opaque), void *opaque)
{
    struct rescue rescue = {.softcpu = softcpu, .outer = innermost};
    bool done = false;

    if (engine_gave_up(softcpu)) {
        return false;
    }
    innermost = &rescue;
    if (setjmp(rescue.back) == 0) {
        step(opaque);
        done = true;
    }
    innermost = rescue.outer;
    return done;
}

static void QEMU_NORETURN give_up(const char *file, int line, const char *what)
{
    struct rescue *rescue = innermost;
    const char *name = strrchr(file, '/');

    if (rescue == NULL) {
        REAL(abort)();
    }
    snprintf(rescue->softcpu->why_gave_up, sizeof(rescue->softcpu->why_gave_up), "%s:%d: %s",
             name == NULL ? file : name + 1, line, what);
    __atomic_store_n(&rescue->softcpu->gave_up, true, __ATOMIC_RELEASE);
    longjmp(rescue->back, 1);
}

void WRAP(g_assertion_message_expr)(const char *file, int line, const char *expression)
{
    give_up(file, line, expression == NULL ? "not to be reached" : expression);
}

void WRAP(__assert_fail)(const char *expression, const char *file, unsigned line, const char *function)
{
    (void)function;
    give_up(file, (int)line, expression);
}

void WRAP(abort)(void)
{
    give_up("unicorn", 0, "abort");
}

void WRAP(exit)(int status)
{
    give_up("unicorn", status, "exit");
}
