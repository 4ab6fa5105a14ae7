/* virtio over MMIO (4.2), which Firecracker has. A Linux guest is told the addresses on its command
 * line or by ACPI; here they are looked for where they are known to be. */
#include "virtio.h"

#define MAGIC 0x000
#define DEVICE_ID 0x008
#define DRIVER_FEATURES 0x020
#define DRIVER_FEATURES_SELECT 0x024
#define QUEUE_SELECT 0x030
#define QUEUE_LENGTH 0x038
#define QUEUE_READY 0x044
#define QUEUE_NOTIFY 0x050
#define STATUS 0x070
#define QUEUE_DESCRIPTORS 0x080
#define QUEUE_AVAILABLE 0x090
#define QUEUE_USED 0x0a0
#define CONFIGURATION 0x100

#define MAGIC_VALUE 0x74726976 /* "virt" */
#define DEVICE_SIZE 0x1000
#define DEVICES 16

/* Where Firecracker has its devices: from 1.12 on, and before. */
static const u64 areas[] = {0xc0000000, 0xd0000000};

static u64 base;

static u32 get(u32 offset) { return read32(base + offset); }
static void set(u32 offset, u32 value) { write32(base + offset, value); }

static void set_address(u32 offset, volatile void *address)
{
    set(offset, (u64)address);
    set(offset + 4, (u64)address >> 32);
}

static int find(u32 type)
{
    for (u32 area = 0; area < sizeof areas / sizeof *areas; area++)
        for (base = areas[area]; base < areas[area] + DEVICES * DEVICE_SIZE; base += DEVICE_SIZE)
            if (get(MAGIC) == MAGIC_VALUE && get(DEVICE_ID) == type)
                return 1;
    return 0;
}

static int negotiate(void)
{
    set(STATUS, STATUS_RESET);
    set(STATUS, STATUS_ACKNOWLEDGE);
    set(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    set(DRIVER_FEATURES_SELECT, FEATURES_LOW);
    set(DRIVER_FEATURES, 0);
    set(DRIVER_FEATURES_SELECT, FEATURES_HIGH);
    set(DRIVER_FEATURES, 1);
    set(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    return get(STATUS) & STATUS_FEATURES_OK;
}

static void set_queue(u16 number, volatile struct virtqueue *queue)
{
    set(QUEUE_SELECT, number);
    set(QUEUE_LENGTH, QUEUE_SIZE);
    set_address(QUEUE_DESCRIPTORS, queue->descriptors);
    set_address(QUEUE_AVAILABLE, &queue->available);
    set_address(QUEUE_USED, &queue->used);
    set(QUEUE_READY, 1);
}

static void start(void)
{
    set(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}

static void notify(u16 number) { set(QUEUE_NOTIFY, number); }

static u32 configuration(void) { return get(CONFIGURATION); }

const struct virtio_transport virtio_mmio = {
    .name = "virtio-mmio",
    .find = find,
    .negotiate = negotiate,
    .set_queue = set_queue,
    .start = start,
    .notify = notify,
    .configuration = configuration,
};
