#ifndef MEMORY_H
#define MEMORY_H

#include "types.h"

/* Maps the first 4 GiB as they are. */
void memory_map(void);

/* Maps the GiB that has this address, where it lies above 4 GiB. One such address is all there is. */
void memory_map_device(u64 address);

/* Writes to each page of that many MiB, from 64 MiB on. */
void memory_fill(u32 mib);

#endif
