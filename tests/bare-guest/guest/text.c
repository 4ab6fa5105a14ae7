#include "text.h"

static u32 length_of(const char *text)
{
    u32 length = 0;
    while (text[length])
        length++;
    return length;
}

static struct slice as_slice(const char *text) { return (struct slice){(const u8 *)text, length_of(text)}; }

int slices_equal(struct slice one, struct slice other)
{
    if (one.length != other.length)
        return 0;
    for (u32 i = 0; i < one.length; i++)
        if (one.start[i] != other.start[i])
            return 0;
    return 1;
}

int slice_is(struct slice slice, const char *text) { return slices_equal(slice, as_slice(text)); }

/* The offset behind `"name"` and its colon, or 0. */
static u32 find_value(struct slice json, struct slice name)
{
    for (u32 at = 0; at + name.length + 2 < json.length; at++) {
        struct slice candidate = {json.start + at + 1, name.length};
        if (json.start[at] != '"' || !slices_equal(candidate, name))
            continue;
        u32 end = at + 1 + name.length;
        if (json.start[end] != '"')
            continue;
        do
            end++;
        while (end < json.length && json.start[end] == ' ');
        if (end < json.length && json.start[end] == ':')
            return end + 1;
    }
    return 0;
}

struct slice json_member(struct slice json, const char *name)
{
    struct slice value = {json.start, 0};
    u32 at = find_value(json, as_slice(name));
    if (!at)
        return value;
    while (at < json.length && json.start[at] == ' ')
        at++;
    int quoted = at < json.length && json.start[at] == '"';
    at += quoted;
    value.start = json.start + at;
    for (; at < json.length; at++, value.length++) {
        u8 c = json.start[at];
        if (quoted ? c == '"' : c == ',' || c == '}' || c == ' ')
            break;
    }
    return value;
}

static void write_byte(struct writer *writer, u8 byte)
{
    if (writer->length < writer->capacity)
        writer->bytes[writer->length++] = byte;
}

void write_slice(struct writer *writer, struct slice slice)
{
    for (u32 i = 0; i < slice.length; i++)
        write_byte(writer, slice.start[i]);
}

void write_text(struct writer *writer, const char *text) { write_slice(writer, as_slice(text)); }

void write_number(struct writer *writer, u64 number)
{
    if (number >= 10)
        write_number(writer, number / 10);
    write_byte(writer, '0' + number % 10);
}
