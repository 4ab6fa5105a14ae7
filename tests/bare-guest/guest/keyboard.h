#ifndef KEYBOARD_H
#define KEYBOARD_H

/* Resets the machine if Ctrl-Alt-Delete was pressed. */
void keyboard_poll(void);

#endif
