#ifndef PROTOCOL_H
#define PROTOCOL_H

#include "vsock.h"

/* Answers each whole frame that has come on a connection. */
void protocol_serve(struct connection *connection);

#endif
