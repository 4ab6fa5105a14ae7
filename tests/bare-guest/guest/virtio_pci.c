/* virtio over PCI (4.1), which Cloud Hypervisor has. The BARs are where the VMM has put them. */
#include "memory.h"
#include "port.h"
#include "virtio.h"

#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA 0xcfc
#define CONFIG_ENABLE 0x80000000

/* The configuration space of any device. */
#define ID 0x00
#define COMMAND 0x04
#define COMMAND_MEMORY_AND_MASTER 6
#define BARS 0x10
#define CAPABILITIES 0x34
#define VENDOR_CAPABILITY 9

/* 4.1.2.1: virtio devices have these identifiers, from their types on. */
#define VENDOR 0x1af4
#define FIRST_DEVICE 0x1040

/* 4.1.4: what a capability tells of. */
#define COMMON 1
#define NOTIFICATION 2
#define DEVICE 4
#define ALTERNATIVE_ACCESS 5

/* 4.1.4.3: the common configuration. */
#define DRIVER_FEATURES_SELECT 0x08
#define DRIVER_FEATURES 0x0c
#define STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_LENGTH 0x18
#define QUEUE_ENABLE 0x1c
#define QUEUE_NOTIFY_OFFSET 0x1e
#define QUEUE_DESCRIPTORS 0x20
#define QUEUE_AVAILABLE 0x28
#define QUEUE_USED 0x30

#define SLOTS 32
#define QUEUES 3

static u64 common, notification, device;
static u32 notify_multiplier;
static u16 notify_offset[QUEUES];

static void select_register(u32 slot, u32 offset)
{
    out32(CONFIG_ADDRESS, CONFIG_ENABLE | slot << 11 | (offset & ~3u));
}

static u32 get(u32 slot, u32 offset)
{
    select_register(slot, offset);
    return in32(CONFIG_DATA);
}

static void set(u32 slot, u32 offset, u32 value)
{
    select_register(slot, offset);
    out32(CONFIG_DATA, value);
}

static u64 bar(u32 slot, u32 number)
{
    u32 offset = BARS + 4 * number;
    u64 address = get(slot, offset);
    if ((address & 6) == 4) /* 64 bit */
        address |= (u64)get(slot, offset + 4) << 32;
    return address & ~0xful;
}

static void read_capability(u32 slot, u32 capability)
{
    u32 head = get(slot, capability);
    u32 kind = head >> 24;
    if ((head & 0xff) != VENDOR_CAPABILITY || kind == ALTERNATIVE_ACCESS)
        return;
    u64 address = bar(slot, get(slot, capability + 4) & 0xff);
    memory_map_device(address);
    address += get(slot, capability + 8);
    if (kind == COMMON)
        common = address;
    if (kind == DEVICE)
        device = address;
    if (kind == NOTIFICATION) {
        notification = address;
        notify_multiplier = get(slot, capability + 16);
    }
}

static int find(u32 type)
{
    for (u32 slot = 0; slot < SLOTS; slot++) {
        if (get(slot, ID) != ((FIRST_DEVICE + type) << 16 | VENDOR))
            continue;
        set(slot, COMMAND, (get(slot, COMMAND) & 0xffff) | COMMAND_MEMORY_AND_MASTER);
        u32 capability = get(slot, CAPABILITIES) & 0xfc;
        for (; capability; capability = get(slot, capability) >> 8 & 0xfc)
            read_capability(slot, capability);
        return common && notification && device;
    }
    return 0;
}

static int negotiate(void)
{
    write8(common + STATUS, STATUS_RESET);
    write8(common + STATUS, STATUS_ACKNOWLEDGE);
    write8(common + STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    write32(common + DRIVER_FEATURES_SELECT, FEATURES_LOW);
    write32(common + DRIVER_FEATURES, 0);
    write32(common + DRIVER_FEATURES_SELECT, FEATURES_HIGH);
    write32(common + DRIVER_FEATURES, 1);
    write8(common + STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    return read8(common + STATUS) & STATUS_FEATURES_OK;
}

static void set_address(u32 offset, volatile void *address)
{
    write32(common + offset, (u64)address);
    write32(common + offset + 4, (u64)address >> 32);
}

static void set_queue(u16 number, volatile struct virtqueue *queue)
{
    write16(common + QUEUE_SELECT, number);
    write16(common + QUEUE_LENGTH, QUEUE_SIZE);
    notify_offset[number] = read16(common + QUEUE_NOTIFY_OFFSET);
    set_address(QUEUE_DESCRIPTORS, queue->descriptors);
    set_address(QUEUE_AVAILABLE, &queue->available);
    set_address(QUEUE_USED, &queue->used);
    write16(common + QUEUE_ENABLE, 1);
}

static void start(void)
{
    write8(common + STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}

static void notify(u16 number)
{
    write16(notification + notify_offset[number] * notify_multiplier, number);
}

static u32 configuration(void) { return read32(device); }

const struct virtio_transport virtio_pci = {
    .name = "virtio-pci",
    .find = find,
    .negotiate = negotiate,
    .set_queue = set_queue,
    .start = start,
    .notify = notify,
    .configuration = configuration,
};
