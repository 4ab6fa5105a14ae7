/* A virtio device (1.x) with split virtqueues, as drivers see it. The section numbers are those of the
 * OASIS specification, version 1.2. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "types.h"

#define QUEUE_SIZE 16

/* 2.7.5 */
struct virtq_descriptor {
    u64 address;
    u32 length;
    u16 flags;
    u16 next;
};

/* 2.7: the queue's three parts, where the device finds them, and how far we have come. */
struct virtqueue {
    struct virtq_descriptor descriptors[QUEUE_SIZE] PAGE_ALIGNED;
    struct {
        u16 flags;
        u16 index;
        u16 ring[QUEUE_SIZE];
    } available PAGE_ALIGNED;
    struct {
        u16 flags;
        u16 index;
        struct {
            u32 id;
            u32 length;
        } ring[QUEUE_SIZE];
    } used PAGE_ALIGNED;
    u16 taken;
};

/* How a device is reached: memory-mapped, or over PCI. */
struct virtio_transport {
    const char *name;
    /* Looks for a device of that type (5); whether there is one. */
    int (*find)(u32 type);
    /* 3.1.1 up to the features, of which VERSION_1 alone is taken; whether the device agreed. */
    int (*negotiate)(void);
    /* Tells the device where a queue is. */
    void (*set_queue)(u16 number, volatile struct virtqueue *queue);
    /* The last step: the device may begin. */
    void (*start)(void);
    /* Tells the device that a queue has more for it. */
    void (*notify)(u16 number);
    /* The first word of the device's own configuration. */
    u32 (*configuration)(void);
};

extern const struct virtio_transport virtio_mmio;
extern const struct virtio_transport virtio_pci;

/* The device status (2.1), in the order in which the bits are set. */
#define STATUS_RESET 0
#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8

/* VIRTIO_F_VERSION_1 is bit 32: the first of the second word. */
#define FEATURES_LOW 0
#define FEATURES_HIGH 1

/* Asks for no interrupts. */
void queue_prepare(volatile struct virtqueue *queue);

/* Hands a buffer to the device, by its number. */
void queue_offer(volatile struct virtqueue *queue, u16 id, void *buffer, u32 length, int device_writes);

/* A buffer that the device is done with, or -1. */
int queue_take(volatile struct virtqueue *queue);

#endif
