/*
 * conformance-fwctl: what a guest can see of bhyve's fwctl, case by case, as TAP on the console.
 *
 * Expectations are upstream's (FreeBSD, usr.sbin/bhyve/amd64/fwctl.c). The last group sends what makes upstream end
 * its process; there, only that the conversation can go on is asked for. NULL, ECHO and SET, which upstream has numbers
 * for but no handlers, may have been switched on: then their answers are checked instead of their absence.
 */
#include "fw_cfg.h"
#include "tap.h"

#define REQUEST_HEADER 12u
#define RESPONSE_HEADER 16u

#define OP_NULL 1u
#define OP_ECHO 2u
#define OP_SET 5u

#define ENOENT 2u
#define E2BIG 7u
#define NO_DATA 0xffffffffu
#define OID_LIMIT 80u

struct response {
    uint32_t size;
    uint32_t operation;
    uint32_t transaction;
    uint32_t error;
    uint32_t data[32];
};

static struct response response;
static uint32_t transaction;

static void restart(void)
{
    char signature[5];

    (void)interface_detect(signature);
}

static void send_header(uint32_t size, uint32_t operation)
{
    out32(FW_CFG_SELECTOR, size);
    out32(FW_CFG_SELECTOR, operation);
    out32(FW_CFG_SELECTOR, ++transaction);
}

/* Sends a payload's words, the last one filled up with zeros. */
static void send_payload(const void *payload, uint32_t size)
{
    for (uint32_t at = 0; at < size; at += sizeof(uint32_t)) {
        uint32_t word = 0;

        memcpy(&word, (const uint8_t *)payload + at, size - at < sizeof(word) ? size - at : sizeof(word));
        out32(FW_CFG_SELECTOR, word);
    }
}

static void receive(void)
{
    uint32_t *words = (uint32_t *)&response;

    memset(&response, 0, sizeof(response));
    words[0] = in32(FW_CFG_SELECTOR);
    for (uint32_t at = 4; at < response.size && at < sizeof(response); at += sizeof(uint32_t))
        words[at / 4] = in32(FW_CFG_SELECTOR);
}

static void request(uint32_t operation, const void *payload, uint32_t size)
{
    send_header(REQUEST_HEADER + size, operation);
    send_payload(payload, size);
    receive();
}

/* Also that nothing is left to read. */
static void expect_response(uint32_t operation, uint32_t error, uint32_t data_size, const char *name)
{
    if (response.operation != operation || response.transaction != transaction)
        tap_ok(false, name);
    else if (response.error != error)
        tap_equal(response.error, error, name);
    else if (response.size != RESPONSE_HEADER + data_size)
        tap_equal(response.size, RESPONSE_HEADER + data_size, name);
    else
        tap_equal(in32(FW_CFG_SELECTOR), NO_DATA, name);
}

/* The answer to GET hw.ncpu: u64 length, then the count. */
static void expect_cpus(const char *name)
{
    if (response.data[0] != 4 || response.data[1] != 0 || response.data[2] == 0)
        tap_ok(false, name);
    else
        expect_response(FWCTL_GET, 0, 12, name);
}

static void expect_identification(const char *name)
{
    char signature[5];

    tap_ok(interface_detect(signature) == INTERFACE_FWCTL, name);
}

static void test_identification(void)
{
    uint8_t bytes[4];

    expect_identification("out16 of 0, then four in8, give BHYV");
    tap_equal(in8(FW_CFG_DATA), 0xff, "a fifth in8 gives ff");
    out16(FW_CFG_SELECTOR, 0);
    in8_string(FW_CFG_DATA, bytes, 4);
    tap_bytes(bytes, "BHYV", 4, "rep insb gives BHYV, too");
    out16(FW_CFG_SELECTOR, 0);
    in8_string(FW_CFG_SELECTOR, bytes, 4);
    tap_bytes(bytes, "BHYV", 4, "and so does port 0x510");

    out16(FW_CFG_SELECTOR, 0);
    (void)in8(FW_CFG_DATA);
    tap_equal(in32(FW_CFG_SELECTOR), NO_DATA, "in32 amid the signature gives all-ones");
    tap_equal(in16(FW_CFG_SELECTOR), 0xffff, "in16 amid the signature gives all-ones");
    out32(FW_CFG_SELECTOR, REQUEST_HEADER);
    out16(FW_CFG_SELECTOR, 1);
    out8(FW_CFG_SELECTOR, 0);
    tap_equal(in8(FW_CFG_DATA), 'H', "out32, out16 of 1 and out8 amid the signature are ignored");
    out16(FW_CFG_SELECTOR, 0);
    tap_equal(in8(FW_CFG_DATA), 'B', "out16 of 0 amid the signature restarts it");
}

static void test_get(void)
{
    restart();
    request(FWCTL_GET, "hw.ncpu", 8);
    expect_cpus("GET hw.ncpu: u64 length 4, the count");
    print("# hw.ncpu is %u\n", response.data[2]);
    request(FWCTL_GET_LEN, "hw.ncpu", 8);
    tap_ok(response.data[0] == 4 && response.data[1] == 0, "GET_LEN hw.ncpu: u64 length 4");
    expect_response(FWCTL_GET_LEN, 0, 8, "and nothing else");
    request(FWCTL_GET, "no.such.oid", 12);
    expect_response(FWCTL_GET, ENOENT, 0, "GET of an unknown OID: ENOENT");
    request(FWCTL_GET_LEN, "no.such.oid", 12);
    expect_response(FWCTL_GET_LEN, ENOENT, 0, "GET_LEN of an unknown OID: ENOENT");
    request(FWCTL_GET, "hw.ncpus\0\0\0", 12);
    expect_response(FWCTL_GET, ENOENT, 0, "GET of a longer name: ENOENT");
    request(FWCTL_GET, "hw.ncpu", 8);
    expect_cpus("requests follow each other without a restart");
}

static void test_framing(void)
{
    char oid[OID_LIMIT + 4];

    restart();
    request(FWCTL_GET, "hw.n", 4);
    expect_cpus("a prefix without a NUL matches");
    request(FWCTL_GET, "", 0);
    expect_response(FWCTL_GET, 0, response.size - RESPONSE_HEADER, "GET without a name gives the first OID there is");
    send_header(REQUEST_HEADER + 6, FWCTL_GET);
    send_payload("hw.n", 4);
    receive();
    expect_cpus("the rest behind the last full word is not waited for");
    send_header(REQUEST_HEADER + 2, FWCTL_GET);
    send_payload("hw.n", 4);
    receive();
    expect_cpus("two bytes alone take a word");

    memset(oid, 'x', sizeof(oid));
    request(FWCTL_GET, oid, OID_LIMIT);
    expect_response(FWCTL_GET, ENOENT, 0, "a name of 80 bytes is looked up");
    request(FWCTL_GET, oid, OID_LIMIT + 4);
    expect_response(FWCTL_GET, E2BIG, 0, "a name of 84 bytes: E2BIG, after all of it");
    request(FWCTL_GET, "hw.ncpu", 8);
    expect_cpus("and the next request works");
}

static void test_unknown_operations(void)
{
    static const uint32_t operations[] = {0, 6, 7, 0x80000003u, 0xffffffffu};
    uint32_t payload[8] = {0};
    bool all = true;

    restart();
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++) {
        request(operations[i], payload, sizeof(payload));
        all &= response.size == RESPONSE_HEADER && response.operation == operations[i] && response.error == ENOENT;
    }
    tap_ok(all, "unknown operations: payload swallowed, ENOENT");
    request(0, 0, 0);
    expect_response(0, ENOENT, 0, "an unknown operation without payload: ENOENT");
}

static void test_extensions(void)
{
    static const uint32_t set[] = {0x6e2e7768, 0x00757063, 4, 0, 1}; /* "hw.ncpu", u64 length 4, 1 */

    restart();
    request(OP_NULL, 0, 0);
    if (response.error) {
        expect_response(OP_NULL, ENOENT, 0, "NULL is not handled: ENOENT");
        request(OP_ECHO, "payload", 8);
        expect_response(OP_ECHO, ENOENT, 0, "ECHO is not handled: ENOENT");
        request(OP_SET, set, sizeof(set));
        expect_response(OP_SET, ENOENT, 0, "SET is not handled: ENOENT");
        return;
    }
    expect_response(OP_NULL, 0, 0, "NULL: success");
    request(OP_ECHO, "payload", 8);
    tap_bytes(response.data, "payload", 8, "ECHO: its payload");
    expect_response(OP_ECHO, 0, 8, "and nothing else");
    request(OP_SET, set, sizeof(set));
    tap_ok(response.operation == OP_SET && response.error, "SET of a value that is not to be set: an error");
}

static void test_states(void)
{
    restart();
    tap_equal(in32(FW_CFG_SELECTOR), NO_DATA, "in32 with no response gives all-ones");
    send_header(REQUEST_HEADER + 8, FWCTL_GET);
    tap_equal(in32(FW_CFG_SELECTOR), NO_DATA, "in32 amid a request gives all-ones");
    tap_equal(in8(FW_CFG_DATA), 0xff, "in8 amid a request gives ff");
    out16(FW_CFG_SELECTOR, 1);
    out8(FW_CFG_SELECTOR, 0);
    send_payload("hw.ncpu", 8);
    receive();
    expect_cpus("neither they, nor out16 of 1 or out8, disturb it");

    send_header(REQUEST_HEADER + 8, FWCTL_GET);
    send_payload("hw.ncpu", 8);
    tap_equal(in32(FW_CFG_SELECTOR), RESPONSE_HEADER + 12, "a response begins with its size");
    tap_equal(in8(FW_CFG_DATA), 0xff, "in8 amid a response gives ff");
    tap_equal(in16(FW_CFG_SELECTOR), 0xffff, "in16 amid a response gives all-ones");
    out32(FW_CFG_SELECTOR, REQUEST_HEADER);
    out16(FW_CFG_SELECTOR, 1);
    tap_equal(in32(FW_CFG_SELECTOR), FWCTL_GET, "neither they, nor out32, disturb it");
    tap_equal(in32(FW_CFG_DATA), transaction, "port 0x511 gives its words, too");

    expect_identification("out16 of 0 amid a response restarts");
    tap_equal(in32(FW_CFG_SELECTOR), NO_DATA, "and the response is gone");
    send_header(REQUEST_HEADER + 8, FWCTL_GET);
    send_payload("no.s", 4);
    expect_identification("out16 of 0 amid a request restarts");
    request(FWCTL_GET, "hw.ncpu", 8);
    expect_cpus("and the request is gone");

    /* FreeBSD-SA-23:07: what a request left behind was taken for part of the next one. */
    for (int i = 0; i < 64; i++) {
        send_header(REQUEST_HEADER + OID_LIMIT, FWCTL_GET);
        send_payload("overflowoverflow", 16);
        restart();
    }
    request(FWCTL_GET, "hw.ncpu", 8);
    expect_cpus("many abandoned requests leave nothing behind");
}

/* What upstream answers by ending the virtual machine or its own process. */
static void test_fatal_upstream(void)
{
    static const uint32_t sizes[] = {0, 1, 4, 11};

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        restart();
        send_header(sizes[i], FWCTL_GET);
    }
    restart();
    request(FWCTL_GET, "hw.ncpu", 8);
    expect_cpus("sizes below 12 end nothing");
    out8(FW_CFG_DATA, 0);
    out16(FW_CFG_DATA, 0);
    out32(FW_CFG_DATA, 0);
    request(FWCTL_GET, "hw.ncpu", 8);
    expect_cpus("writes to 0x511 are ignored");
    send_header(0xfffffffc, FWCTL_GET);
    for (int i = 0; i < 1024; i++)
        out32(FW_CFG_SELECTOR, 0x41414141);
    tap_equal(in32(FW_CFG_SELECTOR), NO_DATA, "a request of 4 GiB is swallowed word by word");
    expect_identification("until it is given up");
    request(FWCTL_GET, "hw.ncpu", 8);
    expect_cpus("and the next request works");
}

uint32_t main(void);
uint32_t main(void)
{
    char signature[5];

    console_init();
    tap_begin("fwctl");
    if (interface_detect(signature) != INTERFACE_FWCTL) {
        tap_bail_out("fwctl does not answer");
        return tap_end();
    }
    test_identification();
    test_get();
    test_framing();
    test_unknown_operations();
    test_extensions();
    test_states();
    test_fatal_upstream();
    return tap_end();
}
