#include "keyboard.h"
#include "memory.h"
#include "serial.h"
#include "vsock.h"

/* How many times it is looked for packets for each look at the keyboard, which is slow. */
#define POLLS 256

/* struct hvm_start_info of PVH, up to what is used of it. */
struct start_info {
    u32 magic, version, flags, modules;
    u64 module_list;
    u64 command_line;
} PACKED;

/* The number behind `name` on the kernel's command line; 0 if it is not there. */
static u32 argument(const char *command_line, const char *name)
{
    for (; *command_line; command_line++) {
        const char *at = command_line;
        const char *wanted = name;
        while (*wanted && *at == *wanted)
            at++, wanted++;
        if (*wanted)
            continue;
        u32 number = 0;
        while (*at >= '0' && *at <= '9')
            number = 10 * number + (*at++ - '0');
        return number;
    }
    return 0;
}

static void halt(void)
{
    for (;;)
        __asm__ volatile("hlt");
}

void guest_main(const struct start_info *info)
{
    memory_map();
    if (info && info->command_line)
        memory_fill(argument((const char *)info->command_line, "fill_mib="));
    if (!vsock_start()) {
        serial_write("there is no vsock device\n");
        halt();
    }
    serial_write("mvm-guest-agent: listening on vsock port 52, cid ");
    serial_write_number(vsock_cid());
    serial_write("\n");
    for (u32 idle = 0;; idle++) {
        if (vsock_poll())
            continue;
        __asm__ volatile("pause");
        if (idle % POLLS == 0)
            keyboard_poll();
    }
}
