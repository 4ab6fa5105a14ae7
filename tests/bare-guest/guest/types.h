/* Integers by their width, and what the compiler is told where the program cannot show it. */
#ifndef TYPES_H
#define TYPES_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define PAGE_SIZE 4096
#define PAGE_ALIGNED __attribute__((aligned(PAGE_SIZE)))
#define PACKED __attribute__((packed))

/* Memory that a device writes or reads too: the compiler keeps the order. The CPU keeps it by itself
 * on x86, but for a load before an earlier store. */
static inline void compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void full_barrier(void) { __asm__ volatile("lock addl $0, (%%rsp)" ::: "memory", "cc"); }

static inline u8 read8(u64 address) { return *(volatile u8 *)address; }
static inline u16 read16(u64 address) { return *(volatile u16 *)address; }
static inline u32 read32(u64 address) { return *(volatile u32 *)address; }
static inline void write8(u64 address, u8 value) { *(volatile u8 *)address = value; }
static inline void write16(u64 address, u16 value) { *(volatile u16 *)address = value; }
static inline void write32(u64 address, u32 value) { *(volatile u32 *)address = value; }

#endif
