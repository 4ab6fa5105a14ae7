/* COM1, which is the console: what is written is in the VM's console.log. VMMs take every byte at
 * once, so it is not asked whether there is room. */
#include "serial.h"
#include "port.h"

#define COM1 0x3f8

void serial_write(const char *text)
{
    while (*text)
        out8(COM1, *text++);
}

void serial_write_number(u64 number)
{
    char digits[21];
    char *first = digits + sizeof digits - 1;
    *first = 0;
    do
        *--first = '0' + number % 10;
    while (number /= 10);
    serial_write(first);
}
