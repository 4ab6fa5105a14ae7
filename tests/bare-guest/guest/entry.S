/* Where a VMM enters: by PVH in 32-bit protected mode (Firecracker from 1.12 on, Cloud Hypervisor), or,
 * as Linux's 64-bit boot protocol has it, in long mode (Firecracker before). */

#define STACK_SIZE 16384

/* XEN_ELFNOTE_PHYS32_ENTRY: this is a PVH kernel. */
    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_entry

    .bss
    .balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 4096
stack:     .skip STACK_SIZE
stack_top:

    .section .rodata
    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            /* 0x08: code, 64 bit */
    .quad 0x00cf93000000ffff            /* 0x10: data */
gdt_register:
    .word . - gdt - 1
    .long gdt

    .text
/* %ebx has the address of the PVH start info. */
    .code32
pvh_entry:
    cli
    /* The first GiB as it is, in pages of 2 MiB: enough to get to C, which maps the rest. */
    movl $boot_pdpt + 3, boot_pml4
    movl $boot_pd + 3, boot_pdpt
    mov $0x83, %eax
    mov $boot_pd, %edi
    mov $512, %ecx
1:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    dec %ecx
    jnz 1b
    mov %cr4, %eax
    or $0x20, %eax                      /* PAE */
    mov %eax, %cr4
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx               /* EFER */
    rdmsr
    or $0x100, %eax                     /* long mode */
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax                /* paging, protected mode */
    mov %eax, %cr0
    lgdt gdt_register
    ljmp $0x08, $long_mode

    .code64
long_mode:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack_top, %rsp
    mov %ebx, %edi
    call guest_main

    .globl _start
_start:
    cli
    mov $stack_top, %rsp
    xor %edi, %edi                      /* no start info */
    call guest_main
