/* The agent's wire protocol in its simplest form: frames with four bytes of length before them,
 * big-endian, and ping, hello, status, sleep-prep and wake. A sleep and a wake are told on the console,
 * with what the host handed in. */
#include "protocol.h"
#include "serial.h"
#include "text.h"

#define FRAME_HEAD 4
#define TOKEN_SIZE 128

/* Whose sleep holds the guest; nobody's while it is empty. */
static u8 token[TOKEN_SIZE];
static struct slice holder = {token, 0};
static u64 generation;

static void hold(struct slice by)
{
    holder.length = by.length < TOKEN_SIZE ? by.length : TOKEN_SIZE;
    for (u32 i = 0; i < holder.length; i++)
        token[i] = by.start[i];
}

static void answer_error(struct writer *answer, const char *code, const char *message, int retryable)
{
    write_text(answer, "\"type\":\"error\",\"code\":\"");
    write_text(answer, code);
    write_text(answer, "\",\"message\":\"");
    write_text(answer, message);
    write_text(answer, retryable ? "\",\"retryable\":true" : "\",\"retryable\":false");
}

static void answer_hello(struct writer *answer)
{
    write_text(answer,
               "\"type\":\"hello\",\"protocol\":1,\"agent_version\":\"0.1.0\",\"profile\":\"prod\","
               "\"capabilities\":[\"ping\",\"hello\",\"status\",\"sleep-prep\",\"wake\"],"
               "\"boot_id\":\"6a1b1f0e-0000-4000-8000-000000000001\",\"generation\":");
    write_number(answer, generation);
}

static void answer_status(struct writer *answer)
{
    write_text(answer, "\"type\":\"status\",\"lifecycle\":\"");
    write_text(answer, holder.length ? "ready" : "running");
    write_text(answer,
               "\",\"health\":\"healthy\",\"uptime_secs\":1.5,\"worker\":{\"state\":\"idle\","
               "\"since\":\"2026-11-24T06:02:11.123Z\",\"last_busy_at\":null,\"because\":[],"
               "\"load1\":0.0,\"runnable\":1},\"integrations\":[]");
}

static void answer_sleep_prep(struct writer *answer, struct slice request)
{
    struct slice given = json_member(request, "token");
    if (!given.length)
        given = (struct slice){(const u8 *)"made-up", 7};
    if (holder.length && !slices_equal(holder, given)) {
        answer_error(answer, "busy", "another host's sleep holds the guest", 1);
        return;
    }
    hold(given);
    serial_write("guest sleep-prep\n");
    write_text(answer, "\"type\":\"ready\",\"token\":\"");
    write_slice(answer, holder);
    write_text(answer, "\",\"steps\":[]");
}

static void tell_wake(struct slice request, int aborted)
{
    serial_write(aborted ? "guest wake aborted" : "guest wake restored");
    if (slice_is(json_member(request, "clone"), "true"))
        serial_write(", clone");
    if (json_member(request, "wall_clock").length)
        serial_write(", time");
    if (json_member(request, "entropy").length)
        serial_write(", entropy");
    serial_write("\n");
}

static void answer_wake(struct writer *answer, struct slice request)
{
    struct slice given = json_member(request, "token");
    if (holder.length && given.length && !slices_equal(holder, given)) {
        answer_error(answer, "wrong-token", "another token holds the guest", 0);
        return;
    }
    int aborted = slice_is(json_member(request, "cause"), "aborted");
    tell_wake(request, aborted);
    if (!aborted)
        generation++;
    write_text(answer, "\"type\":\"awake\",\"was_ready\":");
    write_text(answer, holder.length ? "true" : "false");
    write_text(answer, ",\"lease_expired\":false,\"generation\":");
    write_number(answer, generation);
    write_text(answer, ",\"steps\":[]");
    holder.length = 0;
}

static void answer(struct writer *answer, struct slice request)
{
    struct slice type = json_member(request, "type");
    write_text(answer, "{");
    if (slice_is(type, "ping"))
        write_text(answer, "\"type\":\"pong\"");
    else if (slice_is(type, "hello"))
        answer_hello(answer);
    else if (slice_is(type, "status"))
        answer_status(answer);
    else if (slice_is(type, "sleep-prep"))
        answer_sleep_prep(answer, request);
    else if (slice_is(type, "wake"))
        answer_wake(answer, request);
    else
        answer_error(answer, "unknown-request", "the bare guest does not serve it", 0);
    struct slice id = json_member(request, "id");
    if (id.length) {
        write_text(answer, ",\"id\":");
        write_slice(answer, id);
    }
    write_text(answer, "}");
}

static u32 length_in(const u8 *head) { return head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3]; }

static void serve_frame(struct connection *connection, struct slice request)
{
    static u8 frame[1024];
    struct writer body = {frame + FRAME_HEAD, 0, sizeof frame - FRAME_HEAD};
    answer(&body, request);
    for (u32 i = 0; i < FRAME_HEAD; i++)
        frame[i] = body.length >> 8 * (FRAME_HEAD - 1 - i);
    vsock_send(connection, frame, FRAME_HEAD + body.length);
}

void protocol_serve(struct connection *connection)
{
    u8 *received = connection->received;
    while (connection->length >= FRAME_HEAD) {
        u32 length = length_in(received);
        if (length > RECEIVE_SIZE - FRAME_HEAD) {
            serial_write("a frame is too long\n");
            vsock_reset(connection);
            return;
        }
        if (connection->length < FRAME_HEAD + length)
            return;
        serve_frame(connection, (struct slice){received + FRAME_HEAD, length});
        connection->length -= FRAME_HEAD + length;
        for (u32 i = 0; i < connection->length; i++)
            received[i] = received[FRAME_HEAD + length + i];
    }
}
