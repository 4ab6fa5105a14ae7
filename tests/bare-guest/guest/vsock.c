#include "vsock.h"
#include "protocol.h"
#include "serial.h"

#define DEVICE_TYPE 19
#define PORT 52
#define CONNECTIONS 64

enum { RECEIVE, TRANSMIT, EVENT, QUEUES };

enum operation {
    REQUEST = 1,
    RESPONSE,
    RST,
    SHUTDOWN,
    RW,
    CREDIT_UPDATE,
    CREDIT_REQUEST,
};

#define TYPE_STREAM 1
#define EVENT_TRANSPORT_RESET 0

struct header {
    u64 source, destination;
    u32 source_port, destination_port;
    u32 length;
    u16 type, operation;
    u32 flags;
    u32 buffer_size, forwarded;
} PACKED;

struct packet {
    struct header header;
    u8 payload[PAGE_SIZE - sizeof(struct header)];
} PACKED;

static const struct virtio_transport *device;
static volatile struct virtqueue queues[QUEUES];
static struct packet incoming[QUEUE_SIZE] PAGE_ALIGNED;
static struct packet outgoing[QUEUE_SIZE] PAGE_ALIGNED;
static u32 events[QUEUE_SIZE];
static u16 sent;
static struct connection connections[CONNECTIONS];

static const struct virtio_transport *find_device(void)
{
    if (virtio_mmio.find(DEVICE_TYPE))
        return &virtio_mmio;
    if (virtio_pci.find(DEVICE_TYPE))
        return &virtio_pci;
    return 0;
}

int vsock_start(void)
{
    device = find_device();
    if (!device)
        return 0;
    if (!device->negotiate())
        serial_write("the vsock device refuses VIRTIO_F_VERSION_1\n");
    for (u16 i = 0; i < QUEUES; i++) {
        queue_prepare(&queues[i]);
        device->set_queue(i, &queues[i]);
    }
    for (u16 i = 0; i < QUEUE_SIZE; i++) {
        queue_offer(&queues[RECEIVE], i, &incoming[i], sizeof incoming[i], 1);
        queue_offer(&queues[EVENT], i, &events[i], sizeof events[i], 1);
    }
    device->start();
    device->notify(RECEIVE);
    device->notify(EVENT);
    serial_write("vsock over ");
    serial_write(device->name);
    serial_write("\n");
    return 1;
}

u32 vsock_cid(void) { return device->configuration(); }

/* The next free packet; waits until there is one. */
static struct packet *next_packet(void)
{
    while (queue_take(&queues[TRANSMIT]) >= 0)
        ;
    while ((u16)(sent - queues[TRANSMIT].used.index) >= QUEUE_SIZE)
        compiler_barrier();
    return &outgoing[sent % QUEUE_SIZE];
}

static void send(const struct connection *to, enum operation operation, const u8 *bytes, u32 length)
{
    struct packet *packet = next_packet();
    packet->header = (struct header){
        .source = vsock_cid(),
        .destination = to->peer,
        .source_port = to->local_port,
        .destination_port = to->peer_port,
        .length = length,
        .type = TYPE_STREAM,
        .operation = operation,
        .buffer_size = RECEIVE_SIZE,
        .forwarded = to->forwarded,
    };
    for (u32 i = 0; i < length; i++)
        packet->payload[i] = bytes[i];
    queue_offer(&queues[TRANSMIT], sent % QUEUE_SIZE, packet, sizeof(struct header) + length, 0);
    sent++;
    device->notify(TRANSMIT);
}

void vsock_send(struct connection *connection, const u8 *bytes, u32 length)
{
    send(connection, RW, bytes, length);
}

void vsock_reset(struct connection *connection)
{
    send(connection, RST, 0, 0);
    connection->open = 0;
}

static struct connection *find_connection(const struct header *header)
{
    for (u32 i = 0; i < CONNECTIONS; i++) {
        struct connection *connection = &connections[i];
        if (connection->open && connection->peer == header->source
            && connection->peer_port == header->source_port
            && connection->local_port == header->destination_port)
            return connection;
    }
    return 0;
}

static struct connection *free_connection(void)
{
    for (u32 i = 0; i < CONNECTIONS; i++)
        if (!connections[i].open)
            return &connections[i];
    return 0;
}

/* Tells the peer of a packet that there is no such connection. */
static void refuse(const struct header *header)
{
    struct connection nobody;
    nobody.peer = header->source;
    nobody.peer_port = header->source_port;
    nobody.local_port = header->destination_port;
    nobody.forwarded = 0;
    send(&nobody, RST, 0, 0);
}

static void accept(const struct header *header)
{
    struct connection *connection = free_connection();
    if (header->destination_port != PORT || !connection) {
        refuse(header);
        return;
    }
    connection->open = 1;
    connection->peer = header->source;
    connection->peer_port = header->source_port;
    connection->local_port = header->destination_port;
    connection->forwarded = 0;
    connection->length = 0;
    send(connection, RESPONSE, 0, 0);
}

static void receive(struct connection *connection, const u8 *bytes, u32 length)
{
    if (length > RECEIVE_SIZE - connection->length) {
        serial_write("a frame is too long\n");
        vsock_reset(connection);
        return;
    }
    for (u32 i = 0; i < length; i++)
        connection->received[connection->length++] = bytes[i];
    connection->forwarded += length;
    protocol_serve(connection);
}

static void handle(const struct packet *packet)
{
    const struct header *header = &packet->header;
    struct connection *connection = find_connection(header);
    if (header->operation == REQUEST) {
        accept(header);
        return;
    }
    if (!connection) {
        if (header->operation != RST)
            refuse(header);
        return;
    }
    switch (header->operation) {
    case RW:
        receive(connection, packet->payload, header->length);
        break;
    case CREDIT_REQUEST:
        send(connection, CREDIT_UPDATE, 0, 0);
        break;
    case SHUTDOWN:
        vsock_reset(connection);
        break;
    case RST:
        connection->open = 0;
        break;
    }
}

/* A snapshot was taken: what was open is gone, and the CID may be another one. */
static void transport_reset(void)
{
    for (u32 i = 0; i < CONNECTIONS; i++)
        connections[i].open = 0;
    serial_write("transport reset, cid ");
    serial_write_number(vsock_cid());
    serial_write("\n");
}

int vsock_poll(void)
{
    int id = queue_take(&queues[EVENT]);
    if (id >= 0) {
        if (events[id] == EVENT_TRANSPORT_RESET)
            transport_reset();
        queue_offer(&queues[EVENT], id, &events[id], sizeof events[id], 1);
        device->notify(EVENT);
        return 1;
    }
    id = queue_take(&queues[RECEIVE]);
    if (id < 0)
        return 0;
    handle(&incoming[id]);
    queue_offer(&queues[RECEIVE], id, &incoming[id], sizeof incoming[id], 1);
    device->notify(RECEIVE);
    return 1;
}
