// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// The little that tracker.bpf.c needs to know of the kernel. Field offsets are adjusted to the running kernel
// when the programs are loaded (CO-RE), so only names and types matter here, and no vmlinux.h is needed.
#ifndef KERNEL_H
#define KERNEL_H

typedef unsigned char __u8;
typedef signed short __s16;
typedef unsigned short __u16;
typedef signed int __s32;
typedef unsigned int __u32;
typedef signed long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

enum { BPF_MAP_TYPE_ARRAY = 2 };
enum { BPF_F_MMAPABLE = 1 << 10 };

#define REQ_OP_MASK 0xff
enum {
	REQ_OP_READ = 0,
	REQ_OP_WRITE = 1,
	REQ_OP_FLUSH = 2,
	REQ_OP_DISCARD = 3,
	REQ_OP_SECURE_ERASE = 5,
	REQ_OP_WRITE_ZEROES = 9,
	REQ_OP_DRV_IN = 34,
	REQ_OP_DRV_OUT = 35,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct gendisk {
	int major;
	int first_minor;
};

struct request_queue {
	struct gendisk *disk; /* since 5.15 */
};

struct bvec_iter {
	__u64 bi_sector;
	__u32 bi_size;
} __attribute__((packed));

struct bio {
	struct bio *bi_next;
	struct bvec_iter bi_iter;
};

struct request {
	struct request_queue *q;
	__u32 cmd_flags;
	__u32 __data_len;
	__u64 __sector;
	struct bio *bio;
};

struct request___before_5_15 {
	struct gendisk *rq_disk;
};

#pragma clang attribute pop

#endif
