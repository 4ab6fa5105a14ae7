/* The vsock device (5.10): streams that the host opens to one port. */
#ifndef VSOCK_H
#define VSOCK_H

#include "virtio.h"

/* What has come on a connection and was not taken yet fits in here; a frame has to, too. */
#define RECEIVE_SIZE 4096

struct connection {
    int open;
    u64 peer;
    u32 peer_port;
    u32 local_port;
    /* What was received in all, as the peer's credit counts it. */
    u32 forwarded;
    u32 length;
    u8 received[RECEIVE_SIZE];
};

/* Makes the device ready, over whichever transport has one; whether there is one. */
int vsock_start(void);

/* The guest's own CID. */
u32 vsock_cid(void);

/* Serves what has come in; whether anything had. */
int vsock_poll(void);

/* Sends bytes, a packet's worth at most. */
void vsock_send(struct connection *connection, const u8 *bytes, u32 length);

/* Resets a connection. */
void vsock_reset(struct connection *connection);

#endif
