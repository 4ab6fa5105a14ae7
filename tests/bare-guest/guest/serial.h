#ifndef SERIAL_H
#define SERIAL_H

#include "types.h"

/* Writes a text to the console. */
void serial_write(const char *text);

/* Writes a number in decimal. */
void serial_write_number(u64 number);

#endif
