/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Floating-point arithmetic in XMM registers, executed by the host's own SSE
 * unit in the guest's rounding mode: results, NaNs, denormals and MXCSR's flags
 * are a CPU's. All exceptions are masked on the host; which of them the guest
 * has unmasked is seen by the flags afterwards.
 */
#include "engine.h"

#include <emmintrin.h>

#define EXCP_SIMD 19

/* MXCSR: Intel SDM volume 1, 10.2.3. */
#define MXCSR_INVALID 0x01u
#define MXCSR_DENORMAL 0x02u
#define MXCSR_ZERO_DIVIDE 0x04u
#define MXCSR_OVERFLOW 0x08u
#define MXCSR_UNDERFLOW 0x10u
#define MXCSR_PRECISION 0x20u
#define MXCSR_EXCEPTIONS 0x3fu
#define MXCSR_DENORMALS_ARE_ZEROS 0x40u
#define MXCSR_MASKS_SHIFT 7
#define MXCSR_RANGE (MXCSR_OVERFLOW | MXCSR_UNDERFLOW)
#define MXCSR_ROUNDING_SHIFT 13
#define MXCSR_FLUSH_TO_ZERO 0x8000u
#define MXCSR_RESERVED 0xffff0000u

/* What is found out about operands before anything is computed: with one of these, none of the others is flagged. */
#define MXCSR_BEFORE (MXCSR_INVALID | MXCSR_DENORMAL | MXCSR_ZERO_DIVIDE)

/* The compiler's own, and every thread's. */
static const uint32_t mxcsr_of_host = 0x1f80;

struct operation {
    __m128i destination;
    __m128i source;
    uint32_t mxcsr;
    uint32_t flags; /* of EFLAGS, after a comparison */
};

/* The translator's number for an operation: opcode, prefix (none, 66, F3, F2), and what else makes a difference. */
#define SINGLES 0x000
#define DOUBLES 0x100
#define SINGLE 0x200
#define DOUBLE 0x300
#define QUADWORD 0x1000
#define RSQRT 0x52
#define RCP 0x53
#define PREDICATE_SHIFT 12

#define IN_MODE_OF_GUEST(instruction) "ldmxcsr %[mxcsr]\n\t" instruction "\n\tstmxcsr %[mxcsr]\n\tldmxcsr %[host]"

#define COMPUTE(number, instruction)                                                                    \
    case number:                                                                                        \
        __asm__ volatile(IN_MODE_OF_GUEST(instruction)                                                  \
                         : [d] "+x"(operation->destination), [mxcsr] "+m"(operation->mxcsr)             \
                         : [s] "x"(operation->source), [m] "m"(operation->source),                      \
                           [host] "m"(mxcsr_of_host)                                                    \
                         : "mm0");                                                                      \
        break;

#define COMPUTE_ALL(opcode, name)                              \
    COMPUTE((opcode) | SINGLES, name "ps %[s], %[d]")          \
    COMPUTE((opcode) | DOUBLES, name "pd %[s], %[d]")          \
    COMPUTE((opcode) | SINGLE, name "ss %[s], %[d]")           \
    COMPUTE((opcode) | DOUBLE, name "sd %[s], %[d]")

#define COMPARE(predicate, name) COMPUTE_ALL(0xc2 | (predicate) << PREDICATE_SHIFT, "cmp" name)

#define TO_MMX(number, name) COMPUTE(number, name " %[s], %%mm0\n\tmovq2dq %%mm0, %[d]\n\temms")

#define TO_INTEGER(number, instruction)                                                                 \
    case number:                                                                                        \
        __asm__ volatile(IN_MODE_OF_GUEST(instruction)                                                  \
                         : [d] "=r"(integer), [mxcsr] "+m"(operation->mxcsr)                            \
                         : [s] "x"(operation->source), [host] "m"(mxcsr_of_host));                      \
        operation->destination = _mm_cvtsi64_si128(integer);                                            \
        break;

#define FLAGS(number, instruction)                                                                      \
    case number:                                                                                        \
        __asm__ volatile(IN_MODE_OF_GUEST(instruction)                                                  \
                         : [mxcsr] "+m"(operation->mxcsr), "=@ccz"(zero), "=@ccp"(parity), "=@ccc"(carry) \
                         : [d] "x"(operation->destination), [s] "x"(operation->source),                 \
                           [host] "m"(mxcsr_of_host));                                                  \
        operation->flags = (zero ? CC_Z : 0u) | (parity ? CC_P : 0u) | (carry ? CC_C : 0u);             \
        break;

static void compute(struct operation *operation, uint32_t number)
{
    int64_t integer;
    bool zero;
    bool parity;
    bool carry;

    switch (number) {
        COMPUTE_ALL(0x51, "sqrt")
        COMPUTE(RSQRT | SINGLES, "rsqrtps %[s], %[d]")
        COMPUTE(RSQRT | SINGLE, "rsqrtss %[s], %[d]")
        COMPUTE(RCP | SINGLES, "rcpps %[s], %[d]")
        COMPUTE(RCP | SINGLE, "rcpss %[s], %[d]")
        COMPUTE_ALL(0x58, "add")
        COMPUTE_ALL(0x59, "mul")
        COMPUTE_ALL(0x5c, "sub")
        COMPUTE_ALL(0x5d, "min")
        COMPUTE_ALL(0x5e, "div")
        COMPUTE_ALL(0x5f, "max")
        COMPUTE(0x7c | DOUBLES, "haddpd %[s], %[d]")
        COMPUTE(0x7c | DOUBLE, "haddps %[s], %[d]")
        COMPUTE(0x7d | DOUBLES, "hsubpd %[s], %[d]")
        COMPUTE(0x7d | DOUBLE, "hsubps %[s], %[d]")
        COMPUTE(0xd0 | DOUBLES, "addsubpd %[s], %[d]")
        COMPUTE(0xd0 | DOUBLE, "addsubps %[s], %[d]")
        COMPARE(0, "eq")
        COMPARE(1, "lt")
        COMPARE(2, "le")
        COMPARE(3, "unord")
        COMPARE(4, "neq")
        COMPARE(5, "nlt")
        COMPARE(6, "nle")
        COMPARE(7, "ord")
        FLAGS(0x2e | SINGLES, "ucomiss %[s], %[d]")
        FLAGS(0x2e | DOUBLES, "ucomisd %[s], %[d]")
        FLAGS(0x2f | SINGLES, "comiss %[s], %[d]")
        FLAGS(0x2f | DOUBLES, "comisd %[s], %[d]")
        COMPUTE(0x5a | SINGLES, "cvtps2pd %[s], %[d]")
        COMPUTE(0x5a | DOUBLES, "cvtpd2ps %[s], %[d]")
        COMPUTE(0x5a | SINGLE, "cvtss2sd %[s], %[d]")
        COMPUTE(0x5a | DOUBLE, "cvtsd2ss %[s], %[d]")
        COMPUTE(0x5b | SINGLES, "cvtdq2ps %[s], %[d]")
        COMPUTE(0x5b | DOUBLES, "cvtps2dq %[s], %[d]")
        COMPUTE(0x5b | SINGLE, "cvttps2dq %[s], %[d]")
        COMPUTE(0xe6 | DOUBLES, "cvttpd2dq %[s], %[d]")
        COMPUTE(0xe6 | SINGLE, "cvtdq2pd %[s], %[d]")
        COMPUTE(0xe6 | DOUBLE, "cvtpd2dq %[s], %[d]")
        COMPUTE(0x2a | SINGLES, "cvtpi2ps %[m], %[d]")
        COMPUTE(0x2a | DOUBLES, "cvtpi2pd %[m], %[d]")
        COMPUTE(0x2a | SINGLE, "cvtsi2ssl %[m], %[d]")
        COMPUTE(0x2a | DOUBLE, "cvtsi2sdl %[m], %[d]")
        COMPUTE(0x2a | SINGLE | QUADWORD, "cvtsi2ssq %[m], %[d]")
        COMPUTE(0x2a | DOUBLE | QUADWORD, "cvtsi2sdq %[m], %[d]")
        TO_MMX(0x2c | SINGLES, "cvttps2pi")
        TO_MMX(0x2c | DOUBLES, "cvttpd2pi")
        TO_MMX(0x2d | SINGLES, "cvtps2pi")
        TO_MMX(0x2d | DOUBLES, "cvtpd2pi")
        TO_INTEGER(0x2c | SINGLE, "cvttss2si %[s], %k[d]")
        TO_INTEGER(0x2c | DOUBLE, "cvttsd2si %[s], %k[d]")
        TO_INTEGER(0x2d | SINGLE, "cvtss2si %[s], %k[d]")
        TO_INTEGER(0x2d | DOUBLE, "cvtsd2si %[s], %k[d]")
        TO_INTEGER(0x2c | SINGLE | QUADWORD, "cvttss2si %[s], %q[d]")
        TO_INTEGER(0x2c | DOUBLE | QUADWORD, "cvttsd2si %[s], %q[d]")
        TO_INTEGER(0x2d | SINGLE | QUADWORD, "cvtss2si %[s], %q[d]")
        TO_INTEGER(0x2d | DOUBLE | QUADWORD, "cvtsd2si %[s], %q[d]")
    default:
        g_assert_not_reached();
    }
}

/*
 * Returns the flags that are raised in the guest, whose MXCSR is given. A masked
 * underflow is flagged where the result is tiny and inexact, an unmasked one
 * where it is tiny (Intel SDM volume 1, 4.9.1.5), which flushing to zero shows;
 * and nothing is flushed then.
 */
static uint32_t compute_flags(struct operation *operation, uint32_t guest, uint32_t number)
{
    /* Reserved bits, however the guest came by them, would be the host's fault. */
    uint32_t masked = (guest & ~(MXCSR_EXCEPTIONS | MXCSR_RESERVED)) | MXCSR_EXCEPTIONS << MXCSR_MASKS_SHIFT;
    uint32_t underflow = 0;

    if (!(guest & MXCSR_UNDERFLOW << MXCSR_MASKS_SHIFT)) {
        struct operation flushing = *operation;

        flushing.mxcsr = masked | MXCSR_FLUSH_TO_ZERO;
        compute(&flushing, number);
        underflow = flushing.mxcsr & MXCSR_UNDERFLOW;
        masked &= ~MXCSR_FLUSH_TO_ZERO;
    }
    operation->mxcsr = masked;
    compute(operation, number);
    return underflow | (operation->mxcsr & MXCSR_EXCEPTIONS);
}

/*
 * What makes of CPUs approximate in 12 bits, each in its own way (Intel SDM
 * volume 2, RCPPS and RSQRTPS), is with virtual time the same on every host:
 * the rounded quotient. Denormals are zeros, and no flag is raised.
 */
static __m128i approximate(struct operation operation, uint32_t number)
{
    const uint32_t mode = mxcsr_of_host | MXCSR_FLUSH_TO_ZERO | MXCSR_DENORMALS_ARE_ZEROS;
    __m128 source = _mm_castsi128_ps(operation.source);
    __m128 result = _mm_set1_ps(1);

    if ((number & 0xff) == RSQRT) {
        __asm__ volatile("ldmxcsr %[mode]\n\tsqrtps %[s], %[s]\n\tldmxcsr %[host]"
                         : [s] "+x"(source)
                         : [mode] "m"(mode), [host] "m"(mxcsr_of_host));
    }
    __asm__ volatile("ldmxcsr %[mode]\n\tdivps %[s], %[d]\n\tldmxcsr %[host]"
                     : [d] "+x"(result)
                     : [s] "x"(source), [mode] "m"(mode), [host] "m"(mxcsr_of_host));
    if (number & SINGLE) {
        result = _mm_move_ss(_mm_castsi128_ps(operation.destination), result);
    }
    return _mm_castps_si128(result);
}

static uint32_t unmasked(uint32_t flags, uint32_t guest)
{
    return flags & ~(guest >> MXCSR_MASKS_SHIFT);
}

/* Of what its operands consist, and how many results there are. */
struct shape {
    bool packed;
    bool horizontal; /* a result is of two neighbours of one operand, else of one number of each */
    bool doubles;
    uint32_t bytes; /* of a number */
    uint32_t results;
};

static struct shape shape_of(uint32_t number)
{
    uint32_t opcode = number & 0xff;
    bool by_f2 = opcode == 0x7c || opcode == 0x7d || opcode == 0xd0; /* F2 stands for packed singles */
    struct shape shape = {
        .packed = (number & SINGLE) == 0 || by_f2,
        .horizontal = opcode == 0x7c || opcode == 0x7d,
        .doubles = opcode == 0x5a || (number & 0x300) == DOUBLES || ((number & 0x300) == DOUBLE && !by_f2),
    };

    shape.bytes = shape.doubles ? 8 : 4;
    shape.results = shape.packed ? 16 / shape.bytes : 1;
    return shape;
}

/* All but these bytes become ones, with which nothing raises anything. */
static __m128i only(__m128i value, uint32_t at, uint32_t bytes, bool doubles)
{
    __m128i ones = doubles ? _mm_castpd_si128(_mm_set1_pd(1)) : _mm_castps_si128(_mm_set1_ps(1));

    memcpy((uint8_t *)&ones + at, (uint8_t *)&value + at, bytes);
    return ones;
}

static double number_at(const __m128i *value, uint32_t at, bool doubles)
{
    double number;
    float single;

    memcpy(&number, (const uint8_t *)value + (doubles ? at : 0), sizeof(number));
    memcpy(&single, (const uint8_t *)value + at, sizeof(single));
    return doubles ? number : (double)single;
}

#define X87(instruction)                                                                                \
    __asm__("fldcw %[control]\n\tfldl %[a]\n\t" instruction " %[b]\n\tfnstsw %[status]\n\tfninit"         \
            : [status] "=a"(status)                                                                     \
            : [control] "m"(control), [a] "m"(a), [b] "m"(b)                                             \
            : "st")

/*
 * Would the result be inexact, could its exponent be any? x87 computes in 24 or
 * 53 bits with an exponent of 15.
 */
static bool is_inexact(uint32_t opcode, double a, double b, uint32_t rounding, bool doubles)
{
    uint16_t control = (uint16_t)(0x3f | (doubles ? 0x200 : 0) | rounding << 10);
    uint16_t status;

    switch (opcode) {
    case 0x58:
        X87("faddl");
        break;
    case 0x5c:
        X87("fsubl");
        break;
    case 0x5e:
        X87("fdivl");
        break;
    default:
        X87("fmull");
    }
    return (status & 0x20) != 0;
}

/* The flags of one of the results alone. */
static uint32_t flags_of_result(const struct operation *operation, uint32_t guest, uint32_t number, uint32_t at)
{
    struct shape shape = shape_of(number);
    uint32_t opcode = number & 0xff;
    uint32_t half = shape.results / 2;
    bool of_source = shape.horizontal && at >= half;
    uint32_t first = (shape.horizontal ? at % half * 2 : at) * shape.bytes;
    uint32_t bytes = shape.bytes << shape.horizontal;
    struct operation one = *operation;
    const __m128i *from = of_source ? &operation->source : &operation->destination;
    double a = number_at(from, first, shape.doubles);
    double b = shape.horizontal ? number_at(from, first + shape.bytes, shape.doubles)
                                : number_at(&operation->source, first, shape.doubles);
    uint32_t flags;

    one.destination = only(one.destination, first, of_source ? 0 : bytes, shape.doubles);
    one.source = only(one.source, first, shape.horizontal && !of_source ? 0 : bytes, shape.doubles);
    flags = compute_flags(&one, guest, number);
    if (unmasked(flags, guest) & MXCSR_RANGE) {
        bool subtracts = opcode == 0x7d || (opcode == 0xd0 && at % 2 == 0);
        bool adds = opcode == 0x7c || opcode == 0xd0;

        if (opcode == 0x5a) {
            a = 1;
        }
        flags &= ~MXCSR_PRECISION;
        flags |= is_inexact(subtracts ? 0x5c : adds ? 0x58 : opcode, a, b, guest >> MXCSR_ROUNDING_SHIFT & 3,
                            shape.doubles && opcode != 0x5a)
                     ? MXCSR_PRECISION
                     : 0;
    }
    return flags;
}

/*
 * Where an overflow or underflow is unmasked, the result that counts is the one
 * before its exponent is found not to fit (Intel SDM volume 1, 4.9.1.4).
 */
static uint32_t flags_out_of_range(const struct operation *operation, uint32_t guest, uint32_t number)
{
    struct shape shape = shape_of(number);
    uint32_t flags = 0;

    for (uint32_t at = 0; at < shape.results; at++) {
        flags |= flags_of_result(operation, guest, number, at);
    }
    return flags;
}

void helper_sse_arithmetic(CPUX86State *env, void *destination, void *source, uint32_t number)
{
    uint32_t opcode = number & 0xff;
    bool to_mmx = (opcode == 0x2c || opcode == 0x2d) && (number & SINGLE) == 0;
    struct operation operation = {0};
    struct operation before;
    uint32_t raised;

    memcpy(&operation.destination, destination, to_mmx ? 8 : 16);
    memcpy(&operation.source, source, opcode == 0x2a ? 8 : 16);
    if ((opcode == RCP || opcode == RSQRT) && virtual_time_is_on((struct softcpu_vcpu *)env_cpu(env))) {
        operation.destination = approximate(operation, number);
        memcpy(destination, &operation.destination, sizeof(operation.destination));
        return;
    }
    before = operation;
    raised = compute_flags(&operation, env->mxcsr, number);
    if (unmasked(raised, env->mxcsr) & MXCSR_BEFORE) {
        raised &= MXCSR_BEFORE;
    } else if (unmasked(raised, env->mxcsr) & MXCSR_RANGE) {
        raised = flags_out_of_range(&before, env->mxcsr, number);
    }
    env->mxcsr |= raised;
    if (unmasked(raised, env->mxcsr) != 0) {
        raise_exception_ra(env, (env->cr[4] & CR4_OSXMMEXCPT_MASK) ? EXCP_SIMD : EXCP06_ILLOP, GETPC());
    }
    if (opcode == 0x2e || opcode == 0x2f) {
        CC_SRC = operation.flags;
        return;
    }
    memcpy(destination, &operation.destination, to_mmx ? 8 : 16);
}

void WRAP(helper_ldmxcsr)(CPUX86State *env, uint32_t value)
{
    if (value & MXCSR_RESERVED) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    REAL(helper_ldmxcsr)(env, value);
}

#define FXSAVE_MXCSR 24

void WRAP(helper_fxrstor)(CPUX86State *env, target_ulong address)
{
    if (address % 16 == 0 && (env->cr[4] & CR4_OSFXSR_MASK) &&
        (cpu_ldl_data_ra(env, address + FXSAVE_MXCSR, GETPC()) & MXCSR_RESERVED)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    cpu_restore_state(env_cpu(env), GETPC(), false); /* it may fault, and its caller is not translated code */
    REAL(helper_fxrstor)(env, address);
}
