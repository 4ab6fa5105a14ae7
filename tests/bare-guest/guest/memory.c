/* Page tables: everything at its own address, in pages of 2 MiB. */
#include "memory.h"

#define ENTRIES 512
#define PRESENT_WRITABLE 3
#define LARGE_PAGE 0x80
#define MIB (1ul << 20)
#define GIB (1ul << 30)
#define MAPPED_GIB 4

static u64 pml4[ENTRIES] PAGE_ALIGNED;
static u64 low_pdpt[ENTRIES] PAGE_ALIGNED;
static u64 low_pd[MAPPED_GIB][ENTRIES] PAGE_ALIGNED;
static u64 device_pdpt[ENTRIES] PAGE_ALIGNED;
static u64 device_pd[ENTRIES] PAGE_ALIGNED;

static u64 table(const u64 *entries) { return (u64)entries | PRESENT_WRITABLE; }

static void map_gib(u64 *pd, u64 start)
{
    for (u64 page = 0; page < ENTRIES; page++)
        pd[page] = start | page << 21 | LARGE_PAGE | PRESENT_WRITABLE;
}

static void load_tables(void) { __asm__ volatile("mov %0, %%cr3" ::"r"(pml4) : "memory"); }

void memory_map(void)
{
    pml4[0] = table(low_pdpt);
    for (u64 gib = 0; gib < MAPPED_GIB; gib++) {
        low_pdpt[gib] = table(low_pd[gib]);
        map_gib(low_pd[gib], gib * GIB);
    }
    load_tables();
}

void memory_map_device(u64 address)
{
    if (address < MAPPED_GIB * GIB)
        return;
    u32 in_pml4 = address >> 39 & (ENTRIES - 1);
    u64 *pdpt = in_pml4 ? device_pdpt : low_pdpt;
    if (in_pml4)
        pml4[in_pml4] = table(device_pdpt);
    pdpt[address >> 30 & (ENTRIES - 1)] = table(device_pd);
    map_gib(device_pd, address & ~(GIB - 1));
    load_tables();
}

void memory_fill(u32 mib)
{
    u64 end = (64 + (u64)mib) * MIB;
    /* A word a page makes it one that is in use; no two are alike. */
    for (u64 page = 64 * MIB; page < end; page += PAGE_SIZE)
        *(volatile u64 *)page = page;
}
