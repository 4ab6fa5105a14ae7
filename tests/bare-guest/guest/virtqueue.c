/* Split virtqueues, one descriptor a buffer. */
#include "virtio.h"

#define DEVICE_WRITES 2 /* VIRTQ_DESC_F_WRITE */
#define NO_INTERRUPT 1  /* VIRTQ_AVAIL_F_NO_INTERRUPT */

void queue_prepare(volatile struct virtqueue *queue) { queue->available.flags = NO_INTERRUPT; }

void queue_offer(volatile struct virtqueue *queue, u16 id, void *buffer, u32 length, int device_writes)
{
    volatile struct virtq_descriptor *descriptor = &queue->descriptors[id];
    descriptor->address = (u64)buffer;
    descriptor->length = length;
    descriptor->flags = device_writes ? DEVICE_WRITES : 0;
    queue->available.ring[queue->available.index % QUEUE_SIZE] = id;
    compiler_barrier();
    queue->available.index++;
    full_barrier();
}

int queue_take(volatile struct virtqueue *queue)
{
    if (queue->taken == queue->used.index)
        return -1;
    compiler_barrier();
    return queue->used.ring[queue->taken++ % QUEUE_SIZE].id;
}
