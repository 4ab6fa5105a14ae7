/* The keyboard controller (i8042), by which Firecracker asks a guest to stop: it presses
 * Ctrl-Alt-Delete, and a reset through the controller ends the VM. */
#include "keyboard.h"
#include "port.h"

#define DATA 0x60
#define STATUS_AND_COMMAND 0x64
#define DATA_AVAILABLE 1
#define COMMAND_RESET 0xfe
#define KEY_DELETE 0x71

void keyboard_poll(void)
{
    while (in8(STATUS_AND_COMMAND) & DATA_AVAILABLE)
        if (in8(DATA) == KEY_DELETE)
            out8(STATUS_AND_COMMAND, COMMAND_RESET);
}
