/* JSON, as much as is asked and answered here. */
#ifndef TEXT_H
#define TEXT_H

#include "types.h"

/* A piece of text that somebody else keeps. */
struct slice {
    const u8 *start;
    u32 length;
};

/* Whether the two are the same; the second ends with 0. */
int slice_is(struct slice slice, const char *text);

int slices_equal(struct slice one, struct slice other);

/* The value of the first member of that name, without a string's quotes; of length 0 if there is none.
 * Members of nested objects count, and nothing is unescaped: it suffices for the requests of
 * mvm-guest-agent that are answered here. */
struct slice json_member(struct slice json, const char *name);

/* A text that is being written. What does not fit is left out. */
struct writer {
    u8 *bytes;
    u32 length;
    u32 capacity;
};

void write_text(struct writer *writer, const char *text);
void write_slice(struct writer *writer, struct slice slice);
void write_number(struct writer *writer, u64 number);

#endif
